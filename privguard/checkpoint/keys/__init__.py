"""Who may open a sealed file: keys, recipients, trust, and changes of access."""
