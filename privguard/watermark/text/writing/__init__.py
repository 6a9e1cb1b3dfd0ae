"""Writing marked text: one step of sampling, with transformers or in a serving engine."""
