"""`hf-nullspace`: one module for each command."""
