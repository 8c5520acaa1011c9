"""The whole path on one machine: video, shards, features, pretraining with two workers, evaluation. `make demo`."""
