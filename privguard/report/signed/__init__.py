# SPDX-License-Identifier: Apache-2.0
"""Signed reports: written, kept when a newer one is made, and held against the run folder that they speak of."""
