"""Proof for outsiders: Merkle trees, signed statements, timestamps, beacon pulses and the access journal."""
