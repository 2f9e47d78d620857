"""The exact nullspace of the patch projection: pixel noise that it maps to zero."""
