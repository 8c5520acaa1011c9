"""How samples lie in shards, indexes and manifests, and how they are written."""
