"""The call on its way to the ranks; results and exceptions on their way back."""
