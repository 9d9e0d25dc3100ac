"""Stored token records, and packed batches of them."""
