"""Experiments over the jobs: evaluation protocols and the reproduction of the result tables."""
