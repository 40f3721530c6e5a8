"""Configurations of the encoder and of the complete model."""
