# SPDX-License-Identifier: Apache-2.0
"""What a language model memorised: attacks on membership, exposure and extraction."""
