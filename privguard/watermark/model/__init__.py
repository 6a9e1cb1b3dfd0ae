# SPDX-License-Identifier: Apache-2.0
"""Marks in models: keyed triggers, language-model fingerprints, weight carriers, altered API answers, and alignment."""
