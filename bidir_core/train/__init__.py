"""Fine-tuning: objectives and losses, packing, the loop, checkpoints."""
