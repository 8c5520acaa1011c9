"""What is said in clips: speech recognition by the name of a backend, and how wrong it is."""
