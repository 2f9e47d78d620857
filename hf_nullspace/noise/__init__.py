"""Noise in a model's approximate nullspace: found, certified, drawn and saved."""
