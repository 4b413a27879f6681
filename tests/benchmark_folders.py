"""Benchmarks in their published layouts, written small."""

import json
from pathlib import Path

import datasets

from .paper_files import SOUNDS, write

ESC50 = """filename,fold,target,category,esc10,src_file,take
1-100032-A-0.wav,1,0,dog,True,100032,A
1-100038-A-14.wav,1,14,chirping_birds,False,100038,A
1-100210-A-36.wav,1,36,vacuum_cleaner,False,100210,A
2-100211-A-36.wav,2,36,vacuum_cleaner,False,100211,A
2-100212-A-36.wav,2,36,,False,100212,A
"""


def write_rows(folder: Path, split: str, rows: list[dict], types: dict) -> str:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    features = datasets.Features({"audio": datasets.Audio(), **types})
    path = folder / "data" / f"{split}-00000-of-00001.parquet"
    datasets.Dataset.from_list(rows).cast(features).to_parquet(path)
    return str(folder)


def esc50_folder(folder: Path) -> str:
    audio = {"audio/1-100032-A-0.wav": SOUNDS["dog"], "audio/1-100038-A-14.wav": SOUNDS["bell"]}
    audio |= {"audio/2-100211-A-36.wav": SOUNDS["broken"], "audio/2-100212-A-36.wav": SOUNDS["dog"]}
    return write(folder, {"meta/esc50.csv": ESC50, **audio})


def question(path: str, answer, task: str | None = "Sound_AQA", dataset: str = "avqa", **more) -> dict:
    row = {"path": path, "question": "What is heard?", "answer_gt": answer, "task_name": task, "dataset_name": dataset}
    choices = {"choice_a": "dog", "choice_b": "Cat", "choice_c": "bell", "choice_d": "rain"}
    return {name: value for name, value in (row | choices | {"uniq_id": 7} | more).items() if value != "absent"}


QUESTIONS = [
    question("a.wav", "bell"),
    question("a.wav", " cat", uniq_id=8),  # matches but for case and space
    question("a.wav", "dog", choice_c=None, choice_d=None, uniq_id=9),
    question("b.wav", "dog", choice_d="absent", uniq_id=10),
    question("b.wav", "dog", choice_d="dog", uniq_id=11),
    question("b.wav", "horse", uniq_id=12),
    question("b.wav", "dog", None, uniq_id=13),
    question("gone.wav", "dog", uniq_id=14),
    question("gone.wav", "Cat", uniq_id=15),
    question("broken.wav", "dog", uniq_id=16),
    question("c.wav", [0.5, 1], "Audio_Grounding", "AudioGrounding", choice_a=[0.5, 1], choice_b=[1, 2.5], uniq_id=17),
    question("long.wav", "rain", "Music_AQA", "music_avqa", uniq_id=18),
]


def air_bench_folder(folder: Path, questions=QUESTIONS) -> str:
    return write(folder, {
        "Foundation/Foundation_meta.json": json.dumps(questions),
        "Foundation/Sound_AQA_avqa/a.wav": SOUNDS["dog"],
        "Foundation/Sound_AQA_avqa/b.wav": SOUNDS["bell"],
        "Foundation/Sound_AQA_avqa/broken.wav": SOUNDS["broken"],
        "Foundation/Audio_Grounding_AudioGrounding/c.flac": SOUNDS["bell"],
        "Foundation/Music_AQA_music_avqa/long.wav": SOUNDS["long"],
        "Chat/Chat_meta.json": "[]",
    })  # fmt: skip
