"""What `python -m tuning.ablate` runs: cells of systems, data sets and seeds, what they cost, and their MLflow runs."""
