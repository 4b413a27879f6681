"""Data sets of every form."""
