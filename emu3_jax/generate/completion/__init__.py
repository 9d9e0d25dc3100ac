"""Images and clips of which some codes are given: clips that go on, and inpainting."""
