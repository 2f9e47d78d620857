"""Compares ways of finetuning: plans and runs them, tests their differences, and reports."""
