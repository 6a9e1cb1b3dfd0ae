"""Which records enter a step: identities, users, Poisson draws, and the batches made of them."""
