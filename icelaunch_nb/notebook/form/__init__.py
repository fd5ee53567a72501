"""The form to launch from. Its front end is `notebook/frontend`."""
