"""Access to classifiers: patch projection, noise injection, logits and preprocessing."""
