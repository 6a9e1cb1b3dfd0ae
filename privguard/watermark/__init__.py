# SPDX-License-Identifier: Apache-2.0
"""Marks that survive theft, and claims that survive a court."""
