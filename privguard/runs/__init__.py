# SPDX-License-Identifier: Apache-2.0
"""A private run's own life: its options, how it starts, what drives it, and the folder that it leaves."""
