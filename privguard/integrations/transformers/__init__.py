# SPDX-License-Identifier: Apache-2.0
"""Private training with transformers' Trainer and TRL's SFTTrainer."""
