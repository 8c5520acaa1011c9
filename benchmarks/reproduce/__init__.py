"""`python -m benchmarks.reproduce`: the result tables of docs/results.md."""
