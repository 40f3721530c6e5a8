"""Prepares images and text for the model."""
