"""Metrics as modules of the library `evaluate`, each of which loads by itself from its own folder."""
