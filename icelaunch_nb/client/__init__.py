"""The launching process, with or without Jupyter. It never imports torch and never forks."""
