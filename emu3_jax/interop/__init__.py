"""Import and export of released weights; the key maps are data."""
