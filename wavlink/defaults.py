"""Defaults and choices that the command line and the library share. It imports nothing, so that help stays fast."""

DTYPES = ("float32", "bfloat16", "float16")
BACKENDS, PRECISIONS = ("torch", "openvino", "onnx"), ("fp32", "bf16", "int8")
STORAGES = ("fp32", "fp16")  # number formats of an index
STORAGE = "fp16"
CLEAN_UPS = ("spaces", "none")
SIZES = ("base", "small", "large")  # of the paper's models
BENCHMARKS = ("audiocaps", "clotho", "esc50", "us8k", "vggsound", "airbench", "clotho-moment", "castella", "synthetic")
PROMPT = "This is a sound of {}."  # a copy of `processing.prompts.PROMPT`, whose package loads torch
PRIOR = 0.01  # the share of matching pairs: a sentence describes one sound of a hundred
QUESTION = "What is this sound?"
CHOICE_TEXT = "{question} {choice}"
WEIGHT = 0.5  # of the unwanted direction beside the wanted one, in a search
WINDOW, HOP = 10.0, 5.0  # seconds
FRAME_HEAD = "frame_head.safetensors"  # beside a model's weights
SHORT, SHORT_WINDOW, SHORT_HOP = 120.0, 4.0, 1.0  # seconds: recordings of up to `SHORT` take the other two
