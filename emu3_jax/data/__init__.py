"""From files (images, clips, captions) to batches for training."""
