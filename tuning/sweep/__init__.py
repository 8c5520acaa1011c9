"""`python -m tuning.sweep`: searches over tasks, weights and sizes, in trials that share one Ray."""
