"""Shards that other tools wrote: found, indexed, and read member by member."""
