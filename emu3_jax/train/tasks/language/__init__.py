"""The pretraining task of the transformer."""
