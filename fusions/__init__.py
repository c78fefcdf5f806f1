"""Ways to fuse modalities: one file each, registered by name."""
