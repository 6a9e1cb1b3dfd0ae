# SPDX-License-Identifier: Apache-2.0
"""Exact Gaussian noise on a public grid of integers, and the float32 sampler for whoever accepts its assumption."""
