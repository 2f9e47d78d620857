"""What the package asks of a classifier: where noise enters it, what comes out, and what its image processor does."""
