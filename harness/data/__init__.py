"""Datasets: one file or small folder each, registered by name."""
