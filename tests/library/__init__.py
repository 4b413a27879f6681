"""The public API, the command line and what they share."""
