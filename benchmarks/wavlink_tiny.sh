#!/bin/bash
# The recipe of wavlink-tiny, the model that comes with the package. About three hours on 2 cores.
#
#     bash benchmarks/wavlink_tiny.sh SOUNDS WHISPER MINILM OUT
#
# SOUNDS is an audiofolder with train, validation and test. WHISPER is openai/whisper-tiny.en and MINILM
# sentence-transformers/all-MiniLM-L6-v2, by Hub id or folder. OUT is a new folder; OUT/model is the model.
# The shipped weights were trained with the same stages. Their first one ended after 282 of 500 planned steps and had one
# learning rate for all weights; the first 28 steps of the last one's seed 0 masked and equalized more.
set -euo pipefail
sounds=$1 whisper=$2 minilm=$3 out=$4
prompts="{},a {},This is a sound of {}.,the sound of {},{} sound,we hear {}"

learn() {
    wavlink train sounds --data "$sounds" --caption_bank true --label_share 0.3 --label_prompts "$prompts" \
        --cache_features true --mixed_precision no --batch_size 128 --max_seconds 8 --num_workers 0 \
        --ema_decay 0.99 "$@"
}
encoder() { # learns beside a text tower that does not
    learn --scope audio --learning_rate 1.5e-4 --head_learning_rate 2e-3 "$@"
}
both() { # towers learn
    learn --scope both --learning_rate 1e-4 --head_learning_rate 1e-3 --text_learning_rate 5e-5 \
        --spec_augment true --equalization 1.6 "$@"
}

wavlink distill "$minilm" --data "$sounds" --out "$out/text" --layers 0,2,4,5 --steps 1000
encoder --audio_model "$whisper" --text_model "$out/text" --max_steps 282 --seed 0 --output_dir "$out/first"
encoder --init "$out/first/last" --max_steps 330 --seed 1 --output_dir "$out/second"
for seed in 0 1; do
    encoder --init "$out/second/last" --max_steps 282 --seed "$seed" --output_dir "$out/third-$seed"
done
python benchmarks/average_weights.py "$out"/third-{0,1}/last --out "$out/third"
for seed in 0 1; do
    both --init "$out/third" --max_steps 282 --seed "$seed" --output_dir "$out/fourth-$seed"
    wavlink eval --model "$out/fourth-$seed/last" --benchmark "$sounds" --output "$out/fourth-$seed/scores.json"
done
python benchmarks/average_weights.py "$out/third" "$out/third" "$out"/fourth-{0,1}/last --out "$out/model"
wavlink prompts "$out/model" --data "$sounds" --split validation --store
wavlink calibrate "$out/model" --data "$sounds" --split validation
wavlink eval --model "$out/model" --benchmark "$sounds" --output "$out/scores.json"
python -m hub_cards.bundle "$out/model" --name wavlink-tiny --sounds "$sounds" --scores "$out/scores.json"
