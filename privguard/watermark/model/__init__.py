"""Marks in models: keyed triggers, language-model fingerprints, weight carriers, altered API answers, and alignment."""
