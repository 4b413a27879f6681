"""A folder of five captioned clips for evaluation."""

import pytest
import soundfile

from .conftest import RATE, tone

ROWS = [  # file, seconds, label, captions
    ("dog.wav", 0.9, "dog", "a dog barks", "the loud dog"),
    ("cat.wav", 0.2, "cat", "the cat meows", ""),
    ("bell.wav", 0.4, "low_bell", "the bell rings", "a sound of the bell"),
    ("dogs.wav", 0.3, "dog", "the loud dog", ""),
    ("rain.wav", 0.6, "", "rain falls", "a dog barks"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An audiofolder of five clips, of which some share a caption and one has no label."""
    root = tmp_path_factory.mktemp("five")
    (root / "test").mkdir()
    for number, (name, seconds, *_) in enumerate(ROWS):
        soundfile.write(root / "test" / name, tone(200 * (number + 1), seconds, number), RATE, subtype="FLOAT")
    lines = ["file_name,duration,label,caption,caption_2", *(",".join(map(str, row)) for row in ROWS)]
    (root / "test" / "metadata.csv").write_text("\n".join(lines), encoding="utf-8")
    return root
