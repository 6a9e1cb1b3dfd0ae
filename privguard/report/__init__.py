"""Records → JSON, Markdown and a self-contained page."""
