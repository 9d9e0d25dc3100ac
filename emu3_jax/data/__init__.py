"""From files people have (pictures, clips, captions) to batches a model trains on."""
