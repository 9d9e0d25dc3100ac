"""Preference pairs of a model's own: candidates drawn, scored, and the better and worse kept."""
