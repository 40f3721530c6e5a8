"""Benchmarks through lmms-eval."""
