"""transformers' own common tests, plugged onto WavLink's classes: `make test-common`."""
