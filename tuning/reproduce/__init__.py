"""`python -m tuning.reproduce`: the result tables of docs/results.md."""
