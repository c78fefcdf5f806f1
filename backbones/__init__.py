"""Encoders: one file each, registered by name."""
