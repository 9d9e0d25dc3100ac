"""Tasks that train a transformer."""
