# SPDX-License-Identifier: Apache-2.0
"""``privguard mark``: marks in models, in text and in pictures."""
