# SPDX-License-Identifier: Apache-2.0
"""Book-keeping rules, one file for each kind of layer."""
