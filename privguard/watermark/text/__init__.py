# SPDX-License-Identifier: Apache-2.0
"""Text marks: a signed profile, writing with transformers, and detection from token ids and a secret alone."""
