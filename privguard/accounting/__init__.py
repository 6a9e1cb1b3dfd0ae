"""What happened to the data, and what it cost."""
