"""The panel: a run as one sees it in a notebook. Its front end is `notebook/frontend`."""
