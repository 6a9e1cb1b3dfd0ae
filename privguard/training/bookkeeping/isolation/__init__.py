# SPDX-License-Identifier: Apache-2.0
"""Do the losses of some examples reach rows of others? Asked before and while training."""
