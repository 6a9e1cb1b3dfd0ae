# SPDX-License-Identifier: Apache-2.0
"""Who was in the training data: attacks, the blind baseline, and the verdict that a split supports."""
