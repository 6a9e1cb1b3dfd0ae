"""``privguard mark``: marks in models, in text and in pictures."""
