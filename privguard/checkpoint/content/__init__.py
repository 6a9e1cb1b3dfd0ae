# SPDX-License-Identifier: Apache-2.0
"""What lies inside the seal: the encrypted payload, tensors, and the rest of a training state."""
