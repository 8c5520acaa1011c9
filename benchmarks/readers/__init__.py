"""`python -m benchmarks.readers`: the project's readers and writers measured beside their peers."""
