# SPDX-License-Identifier: Apache-2.0
"""Proof for outsiders: Merkle trees, signed statements, timestamps, beacon pulses and the access journal."""
