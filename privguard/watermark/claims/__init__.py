"""Claims of ownership: committed, challenged, and verified by others."""
