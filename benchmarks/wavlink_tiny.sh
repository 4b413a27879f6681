#!/bin/bash
# The recipe of wavlink-tiny, the model that comes with the package. About seven hours on 2 cores.
#
#     bash benchmarks/wavlink_tiny.sh SOUNDS WHISPER MINILM NAMES CATALOGS OUT
#
# SOUNDS is an audiofolder with train, validation and test. WHISPER is openai/whisper-tiny.en and MINILM
# sentence-transformers/all-MiniLM-L6-v2, by Hub id or folder. NAMES is the folder `annotations` of the npm package
# cldr-annotations-full, CATALOGS holds translations of programs, and eSpeak NG is the Python package espeakng-loader
# (see benchmarks/spoken_words.py). OUT is a new folder; OUT/model is the model.
# The shipped weights were trained with the same stages, the last four in bf16 on a processor that computes in it. Their
# first one ended after 282 of 500 planned steps and had one learning rate for all weights; the first 28 steps of the
# fourth one's seed 0 masked and equalized more; the spoken words were made by an earlier version of the script, whose
# noise in breathy voices had other random numbers.
set -euo pipefail
sounds=$1 whisper=$2 minilm=$3 names=$4 catalogs=$5 out=$6
prompts="{},a {},This is a sound of {}.,the sound of {},{} sound,we hear {}"

learn() {
    wavlink train sounds --caption_bank true --label_share 0.3 --label_prompts "$prompts" \
        --cache_features true --batch_size 128 --max_seconds 8 --num_workers 0 \
        --ema_decay 0.99 "$@"
}
encoder() { # learns beside a text tower that does not
    learn --data "$sounds" --scope audio --learning_rate 1.5e-4 --head_learning_rate 2e-3 "$@"
}
both() { # towers learn
    learn --scope both --learning_rate 1e-4 --head_learning_rate 1e-3 --spec_augment true --equalization 1.6 "$@"
}

wavlink distill "$minilm" --data "$sounds" --out "$out/text" --layers 0,2,4,5 --steps 1000
encoder --audio_model "$whisper" --text_model "$out/text" --max_steps 282 --seed 0 --output_dir "$out/first"
encoder --init "$out/first/last" --max_steps 330 --seed 1 --output_dir "$out/second"
for seed in 0 1; do
    encoder --init "$out/second/last" --max_steps 282 --seed "$seed" --output_dir "$out/third-$seed"
done
python benchmarks/average_weights.py "$out"/third-{0,1}/last --out "$out/third"
for seed in 0 1; do
    both --data "$sounds" --text_learning_rate 5e-5 --init "$out/third" --max_steps 282 --seed "$seed" \
        --output_dir "$out/fourth-$seed"
done
python benchmarks/average_weights.py "$out/third" "$out/third" "$out"/fourth-{0,1}/last --out "$out/fourth"
python benchmarks/spoken_words.py "$out/spoken" --annotations "$names" --sounds "$sounds" --clips 12000
both --mixture "{\"$sounds\": 1, \"$out/spoken\": 0.5}" --validation_data "$sounds" --degraded_share 0.4 \
    --text_learning_rate 7e-5 --init "$out/fourth" --max_steps 700 --seed 0 --output_dir "$out/fifth"
both --data "$sounds" --degraded_share 0.3 --learning_rate 7e-5 --head_learning_rate 7e-4 \
    --text_learning_rate 5e-5 --init "$out/fifth/last" --max_steps 188 --seed 0 --output_dir "$out/sixth"
python benchmarks/average_weights.py "$out/sixth/last" "$out/fifth/last" "$out/fourth" --out "$out/before"
python benchmarks/spoken_words.py "$out/sentences" --annotations "$names" --catalogs "$catalogs" --sounds "$sounds" \
    --clips 12000 --neutral_share 0.5 --seed 1
both --mixture "{\"$sounds\": 1, \"$out/sentences\": 0.5, \"$out/spoken\": 0.25}" --validation_data "$sounds" \
    --degraded_share 0.3 --text_learning_rate 7e-5 --init "$out/before" --max_steps 640 --seed 0 \
    --output_dir "$out/seventh"
# The split that has decided so far is learned from at the end. What is fitted on it, prompts and probabilities, is
# fitted with weights that had not seen it.
python benchmarks/average_weights.py "$out/before" "$out"/seventh/last{,} --out "$out/unseen"
wavlink prompts "$out/unseen" --data "$sounds" --split validation --store
wavlink calibrate "$out/unseen" --data "$sounds" --split validation
mkdir "$out/validation"
ln -s "$(realpath "$sounds/validation")" "$out/validation/train"
both --mixture "{\"$sounds\": 1, \"$out/validation\": 1}" --validation_data "$sounds" --degraded_share 0.3 \
    --learning_rate 7e-5 --head_learning_rate 7e-4 --text_learning_rate 5e-5 --init "$out/seventh/last" \
    --max_steps 203 --seed 0 --output_dir "$out/eighth"
python benchmarks/average_weights.py "$out/before" "$out/seventh/last" "$out/eighth/last" --fitted "$out/unseen" \
    --out "$out/model"
bundle() {
    python -m hub_cards.bundle "$out/model" --name wavlink-tiny --replace --sounds "$sounds" "$out/spoken" \
        "$out/sentences" "$@"
}
bundle # first without scores, which are those of the weights in fp16
wavlink eval --model wavlink-tiny --benchmark "$sounds" --robustness --output "$out/scores.json"
bundle --scores "$out/scores.json"
cp -r wavlink/models/wavlink-tiny "$out/with-frames"
wavlink train-frames "$out/with-frames" --data "$sounds"
python -m hub_cards.bundle --frame_head "$out/with-frames" --name wavlink-tiny
