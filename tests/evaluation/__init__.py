"""Metrics and whole evaluations."""
