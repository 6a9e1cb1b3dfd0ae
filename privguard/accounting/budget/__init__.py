# SPDX-License-Identifier: Apache-2.0
"""The budget book: how much of a data set's privacy loss was spent, by whom, under which rules."""
