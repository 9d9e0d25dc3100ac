"""One module a task, and the registry that names them."""
