"""Scorers of images for a caption: CLIP, LAION's aesthetics, HPSv2, PickScore, MPS, your own."""
