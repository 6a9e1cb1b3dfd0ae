# SPDX-License-Identifier: Apache-2.0
"""Tails, nulls and e-values: how a score becomes a verdict."""
