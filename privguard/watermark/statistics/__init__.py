"""Tails, nulls and e-values: how a score becomes a verdict."""
