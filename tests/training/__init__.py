"""The loop, Trainer, recipes and runs."""
