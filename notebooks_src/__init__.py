"""Source of the committed notebooks: a template, a table, a generator and a runner."""
