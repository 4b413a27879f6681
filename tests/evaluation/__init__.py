"""Tests of metrics and evaluations."""
