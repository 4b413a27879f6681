"""Indexes of sounds: building, storing, querying and publishing them."""
