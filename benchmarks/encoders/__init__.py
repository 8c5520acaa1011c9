"""What a clip costs in each encoder: `python -m benchmarks.encoders`."""
