# SPDX-License-Identifier: Apache-2.0
"""From a context to secret words: the keyed functions behind a text mark."""
