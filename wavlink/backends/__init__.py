"""Backends that run the towers: torch on a CPU with packed weights, and ONNX."""
