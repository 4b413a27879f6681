"""Measuring models: retrieval, zero-shot classification and multiple choice."""
