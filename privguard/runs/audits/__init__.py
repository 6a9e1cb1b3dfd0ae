"""privguard's own step and a user's model, put before the audits."""
