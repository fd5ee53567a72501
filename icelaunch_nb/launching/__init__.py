"""What a new process is told, by the one that starts it."""
