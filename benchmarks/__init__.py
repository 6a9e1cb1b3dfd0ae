# SPDX-License-Identifier: Apache-2.0
"""Measurements: ``python -m benchmarks.<name>`` prints a table and saves it under ``benchmarks/results``."""
