"""Configurations of the encoder and of the whole model."""
