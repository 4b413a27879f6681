"""Indexes of sounds."""
