"""The difference between two settings with its confidence interval."""
