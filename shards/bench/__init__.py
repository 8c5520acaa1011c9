"""`python -m shards bench`: this package's readers and writers measured beside their peers."""
