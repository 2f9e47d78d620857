"""Linear algebra of the patch projection: the pixels that it does not see at all."""
