"""A model is data: an architecture description becomes a step program."""
