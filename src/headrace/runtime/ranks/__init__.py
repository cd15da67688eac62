"""Tensor parallelism: one model in the processes of several ranks, in step with each other."""
