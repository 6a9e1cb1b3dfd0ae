# SPDX-License-Identifier: Apache-2.0
"""What is checked before step 1: modules, examples, collate functions, and the synthetic records for it."""
