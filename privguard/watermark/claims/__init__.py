# SPDX-License-Identifier: Apache-2.0
"""Claims of ownership: committed, challenged, and verified by others."""
