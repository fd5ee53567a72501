"""The form: a launch by looking. Its front end is `notebook/frontend`."""
