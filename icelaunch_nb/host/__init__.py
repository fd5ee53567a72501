"""A small process in its own session. It holds the warm forkserver and starts agents."""
