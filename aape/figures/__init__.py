"""One file a family of figures; all are drawn from tables and artifacts alone."""
