# SPDX-License-Identifier: Apache-2.0
"""Models that an audit asks: behind HTTP, by their labels alone, and as transformers saved them."""
