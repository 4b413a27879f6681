"""The model, its processor and its losses."""
