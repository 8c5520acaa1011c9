"""What each job is told: a frozen dataclass a file, read by its command and by what does the work."""
