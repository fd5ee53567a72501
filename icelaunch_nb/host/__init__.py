"""THE HOST: a small process in a session of its own that holds the warm forkserver and starts agents."""
