"""`python -m shards verify`: all damage of a data set by name, and a manifest of what is whole."""
