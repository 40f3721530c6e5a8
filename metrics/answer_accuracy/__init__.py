"""Accuracy of short answers."""
