# SPDX-License-Identifier: Apache-2.0
"""What happened to the data, and what it cost."""
