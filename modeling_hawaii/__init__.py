"""The model, and its conversion from other checkpoints."""
