"""Pretraining on a cluster: the TorchTrainer, what its workers run, checkpoints, failures, progress."""

from conclugen.common import extras

extras.require("this job", "ray")
