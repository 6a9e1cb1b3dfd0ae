# SPDX-License-Identifier: Apache-2.0
"""An audit of ε in one training run: canaries with coins, committed before training, and bounds from their guesses."""
