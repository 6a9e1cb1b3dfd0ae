# SPDX-License-Identifier: Apache-2.0
"""Data → sampler → clip → noise → step."""
