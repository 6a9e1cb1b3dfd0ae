# SPDX-License-Identifier: Apache-2.0
"""``privguard ledger``: what a run spent, and what may be spent on a data set over all runs."""
