# SPDX-License-Identifier: Apache-2.0
"""Sealed checkpoints, models and data sets for runs that need not be private."""
