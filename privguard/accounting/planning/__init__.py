# SPDX-License-Identifier: Apache-2.0
"""Before a run: what a plan means to those who read it, how two compare, and which one to take."""
