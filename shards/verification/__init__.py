"""`python -m shards verify`: every problem of a data set by name, and a manifest of what is whole."""
