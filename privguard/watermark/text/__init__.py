"""Text marks: a signed profile, writing with transformers, and detection from token ids and a secret alone."""
