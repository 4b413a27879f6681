"""Indexes of sounds: building, storing, querying and publishing them."""

import os

os.environ.setdefault("LANCE_LOG", "error")  # its warnings are for the authors of this package
os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")  # in statistics of a vector index
