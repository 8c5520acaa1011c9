"""`python -m shards pack`: feature arrays and label tables to shards."""
