"""Released language models and their configs, in and out."""
