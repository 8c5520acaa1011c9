"""Pretraining on a cluster: the TorchTrainer, what its workers run, checkpoints, failures, progress."""
