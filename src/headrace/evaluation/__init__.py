"""Grading: data sets, targets, graders, experiments, and what their results say."""
