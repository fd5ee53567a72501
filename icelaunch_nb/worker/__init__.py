"""A rank: what its process does before, during and after the user's function."""
