# SPDX-License-Identifier: Apache-2.0
"""Which records enter a step: identities, users, Poisson draws, and the batches made of them."""
