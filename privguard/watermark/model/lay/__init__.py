# SPDX-License-Identifier: Apache-2.0
"""Laying any suspect beside the committed unmarked copy, before a weight mark is read."""
