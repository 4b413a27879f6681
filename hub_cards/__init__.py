"""Publishing: the model card, the demo, and the command that pushes them to the Hub."""
