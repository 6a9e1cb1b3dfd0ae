"""Ledger and weights → sealed file → back."""
