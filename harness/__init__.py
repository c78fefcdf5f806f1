"""The bench's machine: reads a sweep file, runs it anywhere, prints its tables."""

__version__ = "0.1.0"
