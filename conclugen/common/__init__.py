"""The ground floor: what `shards` and `conclugen` both need, on the standard library and filelock (options: PyYAML)."""
