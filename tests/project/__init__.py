"""The repository itself: documents, examples, packaging."""
