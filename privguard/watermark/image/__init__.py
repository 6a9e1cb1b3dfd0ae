# SPDX-License-Identifier: Apache-2.0
"""Marks in generated images: a keyed mark in the pixels, keyed first noise, the log, and who may be named."""
