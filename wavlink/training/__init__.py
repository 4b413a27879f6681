"""Training: the loop, recipes, checkpoints and what runs on several processes."""
