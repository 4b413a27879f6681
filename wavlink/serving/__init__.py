"""The HTTP server of `wavlink serve`."""
