"""Readers of weight files, and the tensors they give."""
