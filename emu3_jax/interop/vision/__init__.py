"""Released vision tokenizers and feature networks, in and out."""
