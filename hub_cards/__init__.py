"""What is published: the model card's template and the command that pushes."""
