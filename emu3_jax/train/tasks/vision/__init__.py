"""The task that trains a vision tokenizer."""
