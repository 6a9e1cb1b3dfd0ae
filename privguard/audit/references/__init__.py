# SPDX-License-Identifier: Apache-2.0
"""Reference models: what a model says of a record that it was, or was not, trained on."""
