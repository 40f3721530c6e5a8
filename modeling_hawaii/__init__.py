"""The model, and conversion from other checkpoints."""
