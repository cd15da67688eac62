"""Executors of step programs."""
