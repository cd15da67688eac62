"""Redundant work avoided: answers kept by exact key, and executions shared while they run."""
