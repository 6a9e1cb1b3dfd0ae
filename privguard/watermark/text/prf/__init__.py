"""From a context to secret words: the keyed functions behind a text mark."""
