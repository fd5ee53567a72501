"""A rank: the order of things before and after the user's function."""
