"""Reference models: what a model says of a record that it was, or was not, trained on."""
