"""The text mark in vLLM."""
