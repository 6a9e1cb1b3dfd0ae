"""Data → sampler → clip → noise → step."""
