"""What is checked before step 1: modules, examples, collate functions, and the synthetic records for it."""
