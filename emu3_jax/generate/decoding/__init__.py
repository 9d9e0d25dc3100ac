"""Tokens from a model, batch by batch, under the grammar."""
