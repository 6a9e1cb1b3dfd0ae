"""Marks that survive theft, and claims that survive a court."""
