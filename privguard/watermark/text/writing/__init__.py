# SPDX-License-Identifier: Apache-2.0
"""Writing marked text: one step of sampling, with transformers or in a serving engine."""
