"""Data sets of moments in their published layouts, written small."""

import json
from pathlib import Path

from .paper_files import SOUNDS, wav, write


def query(qid, vid: str = "Venice_0.0_60.0", windows=((0.2, 0.6),), **more) -> dict:
    row = {"qid": qid, "query": f"the sound of {qid}", "duration": 1, "vid": vid}
    return {**row, "relevant_windows": [list(window) for window in windows], **more}


CLOTHO_MOMENT = [
    query("00001"),
    query("00002", windows=[(0.5, 0.9)], fg_dB=-3.5),
    query("00003", "Oslo_1.0_61.0"),
    query("00003", "Oslo_1.0_61.0"),  # repeated
    query("00004", "Oslo_1.0_61.0", query=" "),
    query("00005", "Oslo_1.0_61.0", windows=[(0.5, 0.5), (0.7, 0.4)]),
    query("00006", "Oslo_1.0_61.0", windows=[(0.1, 0.2), (1.5, 2.5)]),  # the second ends after the recording
    query("00007", "Gone_2.0_62.0"),
    query("00008", "Broken_3.0_63.0"),
    query("00009", "Oslo_1.0_61.0", windows=[(0.1, 0.2, 0.3)]),
    query("00010", "Short_4.0_64.0", duration=60),
]


def clotho_moment_folder(folder: Path, rows=CLOTHO_MOMENT, annotations: str = "text/test.jsonl") -> str:
    lines = [json.dumps(row) for row in rows]
    return write(
        folder,
        {
            annotations: "\n".join([*lines[:2], '{"qid": ', "", *lines[2:]]) + "\n",
            "wav/32000hz/test/Venice_0.0_60.0.wav": wav(1.0),
            "wav/32000hz/test/Oslo_1.0_61.0.wav": wav(1.0, 880),
            "wav/32000hz/test/Broken_3.0_63.0.wav": SOUNDS["broken"],
            "wav/32000hz/test/Short_4.0_64.0.wav": wav(0.5),
        },
    )


CASTELLA = [
    {
        "yid": "-0awng26xQ8",
        "global_caption": "A man drives",
        "duration": 1,
        "num_moments": 2,
        "moments": [
            {"local_caption": "A man starts the engine", "timestamps": [[0, 1], [1, 2]]},
            {"local_caption": "A horn blares", "timestamps": [[1, 1]]},
        ],
    },
    {"yid": "BUAPM4D3-h8", "duration": 1, "moments": [{"local_caption": "A bell rings", "timestamps": [[0, 1]]}]},
    {"yid": "no moments"},
]


def castella_folder(folder: Path, annotations: str = "json/en/test.json") -> str:
    sounds = {"audio/Y-0awng26xQ8.wav": wav(1.0), "audio/BUAPM4D3-h8.flac": wav(1.4, 660, kind="FLAC")}
    return write(folder, {annotations: json.dumps(CASTELLA), **sounds})
