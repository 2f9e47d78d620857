"""`NullspaceTrainer`: the training step, its arguments, its checkpoints and what it publishes."""
