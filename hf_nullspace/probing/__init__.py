"""What a model does not see: exact noise in its pixels, and approximate noise in front of its encoder."""
