"""Headrace: one inference platform, from the HTTP door to the arithmetic and back to the grade."""

__version__ = "0.1.0"
