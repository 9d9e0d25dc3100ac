"""The transformer over one stream of tokens, and its loss."""
