#!/bin/bash
# Train the model that comes with the package, about 100 minutes on 2 cores:
#     bash benchmarks/wavlink_tiny.sh SOUNDS WHISPER_TINY_EN MINILM runs/wavlink-tiny
# SOUNDS is an audiofolder with train, validation and test; the others are Hub ids or folders, and the last one is new.
set -euo pipefail
sounds=$1 whisper=$2 minilm=$3 out=$4
