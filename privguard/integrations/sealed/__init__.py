"""Sealed checkpoints, models and data sets for runs that need not be private."""
