"""What a task keeps of features whose factors are known."""
