"""What a process passes to the processes that it starts."""
