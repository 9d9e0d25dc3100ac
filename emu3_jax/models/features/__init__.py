"""Networks whose features images are compared by: LPIPS, Inception v3, I3D."""
