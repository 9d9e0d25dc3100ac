"""A vision tokenizer at work on images and clips of any size, and what identifies it."""
