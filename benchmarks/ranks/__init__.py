"""What a step on several ranks costs beside a plain DistributedDataParallel loop: `python -m benchmarks.ranks`."""
