"""The vision tokenizer and its discriminator."""
