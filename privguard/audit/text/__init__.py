"""What a language model memorised: attacks on membership, exposure and extraction."""
