"""What a published folder holds beside the weights."""
