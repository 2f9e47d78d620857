"""Shared helpers of all wings: random numbers, files, processes, figures and text."""
