"""Networks whose features compare images and clips: LPIPS, Inception v3, I3D."""
