"""Tests of the loop, Trainer, recipes and runs."""
