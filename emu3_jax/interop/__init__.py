"""Released weights in and out; the key maps are data."""
