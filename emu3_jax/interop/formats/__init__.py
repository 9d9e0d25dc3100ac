"""Files of tensors: safetensors, torch's pickles, and from them onto a mesh."""
