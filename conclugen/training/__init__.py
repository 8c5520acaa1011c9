"""From batches to a trained model: the step, its gradients, its state."""
