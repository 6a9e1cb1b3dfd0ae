"""``privguard audit``: audits that try to refute a claim."""
