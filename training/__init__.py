"""Teachers, losses, objectives and the trainer."""
