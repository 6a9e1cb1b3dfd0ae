"""Private training with transformers' Trainer and TRL's SFTTrainer."""
