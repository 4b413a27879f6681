"""What is published, and what is loaded from elsewhere."""
