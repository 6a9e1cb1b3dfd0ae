# SPDX-License-Identifier: Apache-2.0
"""Drop-in wrappers for plain loops, transformers, accelerate and existing opacus runs."""
