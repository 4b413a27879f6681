"""Collected only where `make test-common` says where transformers' own tests are."""

import os

from .sources import VARIABLE

collect_ignore_glob = [] if VARIABLE in os.environ else ["test_*.py"]
