"""Drop-in wrappers for plain loops, transformers, accelerate and existing opacus runs."""
