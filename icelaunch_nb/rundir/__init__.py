"""The run directory: the protocol between kernel, host, agent and ranks, in files."""
