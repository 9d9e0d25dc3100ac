"""Tensor files: safetensors, torch's pickles, and loading them onto a mesh."""
