"""What runs on the cluster: one small module for each job, the TorchTrainer around a Pretrainer, and the tracking."""
