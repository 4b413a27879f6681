"""Indexes of sounds: building, storing, querying and publishing them."""

import os

# Lance reads these when it is imported: it would warn on stderr of each query.
os.environ.setdefault("LANCE_LOG", "error")
os.environ.setdefault("LANCE_INCLUDE_VECTOR_CENTROIDS", "false")
