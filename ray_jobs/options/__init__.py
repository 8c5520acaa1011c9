"""Options of the jobs: a frozen dataclass a file, read by its command and by the code that does the work."""
