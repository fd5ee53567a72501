"""The magics ``%%icelaunch`` and ``%icelaunch``: their options, and the compiled cell."""
