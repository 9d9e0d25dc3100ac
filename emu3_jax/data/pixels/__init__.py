"""Batches of stills and clips, for training a vision tokenizer."""
