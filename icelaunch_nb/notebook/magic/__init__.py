"""``%%icelaunch`` and ``%icelaunch``: what stands on the line and in the cell, and what becomes of it."""
