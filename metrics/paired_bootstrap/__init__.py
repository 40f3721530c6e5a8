"""The difference between two settings, with its interval."""
