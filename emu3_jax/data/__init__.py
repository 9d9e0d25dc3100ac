"""From files people have (images, clips, captions) to batches a model trains on."""
