"""What lies inside the seal: the encrypted payload, tensors, and the rest of a training state."""
