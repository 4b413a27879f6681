"""Sound files, features and names."""
