"""From shards to batches: checked reads, mixtures, streams, Ray Data."""
