"""THE KERNEL: what runs in the user's own process. Never imports torch, never forks, never touches its signal handlers."""
