"""What Jupyter adds to the launching process: magics, form and panel."""
