"""Judging a model and its policies: timing, peaks, scores and reports."""
