"""The panel that shows a run in a notebook. Its front end is `notebook/frontend`."""
