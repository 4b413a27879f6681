"""A map of an index: one point a sound, its label, its link, and names that stay text."""

import base64
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin

import numpy as np
import pytest
import soundfile

from tests.conftest import RATE, tone
from wavlink.common_sounds import COMMON_SOUNDS
from wavlink.embedder import Embedder
from wavlink.search import map as sound_map
from wavlink.search import table as index_table
from wavlink.search.build import index_sounds
from wavlink.search.listing import Sound
from wavlink.search.manifest import Manifest
from wavlink.search.map import (
    GUESSED_GROUPS,
    GUESSED_LABELS,
    UNLABELLED,
    file_vectors,
    layout,
    named_groups,
    nearest_labels,
)
from wavlink.search.map_page import SHOWN, page
from wavlink.search.rows import window_rows
from wavlink.search.scoring import truncated
from wavlink.search.table import Table

HOSTILE = "</script><script>window.bad=1<!--"
DIM = 8


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


def write_index(folder: Path, names: list[str], root: str = "", windows: int = 1, storage: str = "fp32") -> Path:
    """An index of made vectors, a commit a window, so that a file's windows are in several fragments."""
    manifest = Manifest("model", "none", DIM, [DIM], DIM, storage, 10.0, 5.0, RATE, root)
    with Table.create(folder, manifest) as table:
        for number, vector in enumerate(vectors(len(names) * windows)):
            sound, first = Sound(names[number // windows], 1, 1, ""), number % windows
            times = [(5.0 * first, 10.0)]
            table.append(window_rows(manifest, sound, times, vector[None], first=first, windows=windows))
    return folder


def sound_files(root: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, tone(200 + 100 * number, 0.1, number), RATE, format="WAV")
    return root


def traces(html: str) -> list[dict]:
    """The data of the plot, as the browser would read them; the last trace is the ring around the chosen one."""
    start = html.index("[", html.rindex("Plotly.newPlot("))
    return json.JSONDecoder().raw_decode(html[start:])[0]


def points(html: str) -> dict[str, tuple[str, str]]:
    """Label and link by name."""
    return {name: (label, link) for trace in traces(html)[:-1] for name, label, link in trace["customdata"]}


class Tags(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.tags = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))


# --- positions


def test_a_files_vector_is_the_mean_direction_of_its_windows_over_all_fragments(tmp_path, monkeypatch):
    names = ["b.wav", "a.wav", "c.wav"]
    table = Table.open(write_index(tmp_path / "index", names, windows=3, storage="fp16"))
    stored = truncated(vectors(9), DIM).reshape(3, 3, DIM)
    expected = stored.sum(1) / np.linalg.norm(stored.sum(1), axis=1, keepdims=True)
    assert len(table.dataset.get_fragments()) == 9
    assert np.allclose(file_vectors(table, ["a.wav", "c.wav"]), expected[[1, 2]], atol=1e-3)
    monkeypatch.setattr(index_table, "_FEW_FRAGMENTS", 1)
    with table.writing():
        table.compact()
    assert len(table.dataset.get_fragments()) == 1
    assert np.allclose(file_vectors(table, ["a.wav", "c.wav"]), expected[[1, 2]], atol=1e-3)


def test_near_vectors_are_near_on_the_map():
    centres = np.eye(3, DIM)
    groups = np.repeat(np.arange(3), 20)
    positions = layout(np.float32(centres[groups] + 0.05 * vectors(60)), seed=0)
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1) + np.diag(np.full(60, np.inf))
    assert (groups[distances.argmin(1)] == groups).all()


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_map_of_a_few_sounds(tmp_path, count, capsys):
    names = [f"{n}.wav" for n in range(count)]
    sound_map.main([str(write_index(tmp_path / "index", names)), "--out", str(tmp_path / "map.html"), "--json"])
    made = json.loads(capsys.readouterr().out)
    assert made == {"file": str(tmp_path / "map.html"), "sounds": count, "labels": {UNLABELLED: count}}
    assert points((tmp_path / "map.html").read_text()).keys() == set(names)
    positions = layout(vectors(count), 0)
    assert positions.shape == (count, 2) and np.isfinite(positions).all()
    assert len(np.unique(positions, axis=0)) == count


def test_layout_of_equal_sounds():
    assert (layout(np.tile(vectors(1), (5, 1)), 0) == 0).all()


def test_same_seed_gives_the_same_map(tmp_path):
    folder = write_index(tmp_path / "index", [f"{n:02d}.wav" for n in range(12)])

    def made(seed: int, most: int) -> bytes:
        sound_map.draw_map(folder, tmp_path / "map.html", seed=seed, most=most)
        return (tmp_path / "map.html").read_bytes()

    first = made(0, 6)
    assert made(0, 6) == first
    names, others = points(first.decode()).keys(), points(made(1, 6).decode()).keys()
    assert len(names) == len(others) == 6 and names != others


def test_most_is_reported(tmp_path, capsys):
    folder = write_index(tmp_path / "index", ["a.wav", "b.wav", "c.wav"])
    sound_map.main([str(folder), "--out", str(tmp_path / "map.html"), "--most", "2", "--json"])
    printed = capsys.readouterr()
    assert json.loads(printed.out)["sounds"] == 2 and "2 of the 3 sounds are drawn" in printed.err


# --- labels


def test_labels_of_folders_and_of_metadata(tmp_path, capsys):
    names = ["dog/1.wav", "dog/2.wav", "cat/1.wav"]
    root = sound_files(tmp_path / "sounds", names)
    folder, out = write_index(tmp_path / "index", names, str(root)), tmp_path / "map.html"
    assert sound_map.draw_map(folder, out)["labels"] == {"dog": 2, "cat": 1}

    (root / "dog/metadata.csv").write_text("file_name,label,kind\n1.wav,howl,a\n2.wav,,b\n")  # from its own folder
    assert sound_map.draw_map(folder, out, labels=root / "dog/metadata.csv")["labels"] == {UNLABELLED: 2, "howl": 1}
    assert "1 of the 3 sounds are not in" in capsys.readouterr().err
    assert points(out.read_text())["dog/1.wav"][0] == "howl"
    results = sound_map.draw_map(folder, out, labels=root / "dog/metadata.csv", label_column="kind")["labels"]
    assert results == {"a": 1, "b": 1, UNLABELLED: 1}

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/list.csv").write_text("file_name,label\ncat/1.wav,meow\n")  # as the index has them
    assert sound_map.draw_map(folder, out, labels=tmp_path / "elsewhere/list.csv")["labels"]["meow"] == 1


def test_labels_from_text_are_the_nearest_by_the_prompt():
    axes_by_text = {"This is a sound of dog.": 3, "This is a sound of sea waves.": 1}
    wanted = np.eye(12, dtype=np.float32)

    def embed_text(texts):
        return np.stack([wanted[axes_by_text[text]] for text in texts])

    sounds = np.float32([[0, 0.9, 0, 0.1] + [0] * 4, [0, 0.1, 0, 0.9] + [0] * 4])
    assert nearest_labels(sounds, ["dog", "sea_waves", "dog"], embed_text) == ["sea_waves", "dog"]


def test_labels_from_text_use_the_indexs_model(tmp_path, wavlink_folder):
    root = sound_files(tmp_path / "sounds", ["1.wav", "2.wav", "3.wav"])
    embedder = Embedder(str(wavlink_folder))
    index_sounds(str(root), tmp_path / "index", embedder, storage="fp32", progress=False)
    words = ["dog", "bell", "rain"]
    made = sound_map.draw_map(tmp_path / "index", tmp_path / "map.html", labels_from_text=words)
    index = Table.open(tmp_path / "index")
    texts = truncated(embedder.embed_text([f"This is a sound of {word}." for word in words]), index.manifest.dim)
    best = (file_vectors(index, ["1.wav", "2.wav", "3.wav"]) @ texts.T).argmax(1)
    shown = points((tmp_path / "map.html").read_text())
    assert [shown[f"{n}.wav"][0] for n in (1, 2, 3)] == [words[n] for n in best] and made["sounds"] == 3


class Spread:
    """Embeds n texts at the first n of the axes of `[DIM]`, and over again."""

    def embed_text(self, texts):
        return np.eye(DIM, dtype=np.float32)[np.arange(len(texts)) % DIM]


def test_groups_are_named_after_the_nearest_common_sounds():
    axes = np.repeat([0, 1, 2], 6)
    sounds = np.eye(DIM, dtype=np.float32)[axes] + 0.01 * vectors(18)
    sounds /= np.linalg.norm(sounds, axis=1, keepdims=True)
    named = named_groups(sounds, Spread().embed_text, 0)
    assert len(set(named)) == 3
    for axis, words in zip(axes, named, strict=True):
        assert all(COMMON_SOUNDS.index(word) % DIM == axis for word in words.split(", "))
    assert set(named_groups(np.tile(sounds[:1], (9, 1)), Spread().embed_text, 0)) == {UNLABELLED}


@pytest.mark.parametrize("count", [7, 8])
def test_sounds_of_one_folder_are_grouped_and_names_marked_as_guessed(tmp_path, wavlink_folder, count, capsys):
    root = sound_files(tmp_path / "sounds", [f"{n}.wav" for n in range(count)])
    index_sounds(str(root), tmp_path / "index", str(wavlink_folder), storage="fp32", progress=False)
    made = sound_map.draw_map(tmp_path / "index", tmp_path / "map.html")
    html = (tmp_path / "map.html").read_text()
    assert (made["labels"] == {"sounds": count}) == (count < 8) == (GUESSED_GROUPS not in html)
    if count == 8:
        assert all(word in COMMON_SOUNDS for label in made["labels"] for word in label.split(", "))
        assert points(html).keys() == {f"{n}.wav" for n in range(count)}
        assert traces(html)[0]["text"][0].startswith("<b>") and ".wav</b><br>" in traces(html)[0]["text"][0]
        sound_map.draw_map(tmp_path / "index", tmp_path / "map.html", labels_from_text=["dog", "cat"])
        assert GUESSED_LABELS in (tmp_path / "map.html").read_text()
    shutil.rmtree(wavlink_folder)
    assert sound_map.draw_map(tmp_path / "index", tmp_path / "map.html")["labels"] == {"sounds": count}
    assert ("have no names without the index's model" in capsys.readouterr().err) == (count == 8)


def test_rare_labels_share_one_colour():
    labels = [f"label {n}" for n in range(SHOWN) for _ in range(2)] + ["rare", "rarer"]
    names = [f"{n}.wav" for n in range(len(labels))]
    *shown, rest, _ = traces(page("x", vectors(len(labels))[:, :2], names, labels, [""] * len(labels)))
    assert len(shown) == SHOWN and rest["name"] == "2 other labels (2)"
    assert [label for _, label, _ in rest["customdata"]] == ["rare", "rarer"]
    looks = {(trace["marker"]["color"], trace["marker"]["symbol"]) for trace in (*shown, rest)}
    assert len(looks) == SHOWN + 1


# --- sounds


def test_links_lead_from_the_page_to_the_sounds(tmp_path):
    names = ["dog/a b.wav", "50% #1?.wav", "naïve.wav", "javascript:x.wav"]
    root = sound_files(tmp_path / "my sounds", names)
    folder, out = write_index(tmp_path / "index", [*names, "gone.wav"], str(root)), tmp_path / "maps/deep/map.html"
    sound_map.draw_map(folder, out)
    results = points(out.read_text())
    assert results.pop("gone.wav")[1] == ""
    for name, (_, link) in results.items():
        assert link.startswith("../../my%20sounds/")
        assert unquote(urljoin(out.as_uri(), link)) == f"file://{root / name}"

    shutil.move(tmp_path, moved := tmp_path.with_name(tmp_path.name + "-moved"))  # all of it together
    assert unquote(urljoin((moved / "maps/deep/map.html").as_uri(), link)).startswith(f"file://{moved}/my sounds/")


def test_small_sounds_are_embedded(tmp_path, monkeypatch, capsys):
    root = sound_files(tmp_path / "sounds", ["small.wav", "large.wav"])
    soundfile.write(root / "large.wav", tone(seconds=1.0), RATE)
    folder, out = write_index(tmp_path / "index", ["small.wav", "large.wav"], str(root)), tmp_path / "map.html"
    size = (root / "small.wav").stat().st_size
    sound_map.main([str(folder), "--out", str(out), "--embed_audio", str(size)])
    assert f"1 sounds of more than {size} bytes are linked" in capsys.readouterr().err
    results = {name: link for name, (_, link) in points(out.read_text()).items()}
    assert results["large.wav"] == "sounds/large.wav" and re.match("data:audio/[a-z.-]+;base64,", results["small.wav"])
    assert base64.b64decode(results["small.wav"].split(",")[1]) == (root / "small.wav").read_bytes()

    out.unlink()
    monkeypatch.setattr(sound_map, "EMBEDDED_TOTAL", size - 1)
    with pytest.raises(ValueError, match=f"{size} bytes, more than the {size - 1}.*--embed_audio a smaller limit"):
        sound_map.draw_map(folder, out, embed_audio=size)
    assert not out.exists()


def test_hostile_names_and_labels_are_escaped(tmp_path):
    name = f"{HOSTILE.replace('/', '%2F')}\x1b[31m\u202e{{plot_id}}.wav"
    root = sound_files(tmp_path / "sounds", [name])
    folder, out = write_index(tmp_path / f"<b>{{x}}{HOSTILE.replace('/', '')}", [name], str(root)), tmp_path / "m.html"
    (root / "metadata.csv").write_text(f'file_name,label\n{name},"{HOSTILE}\x07\u2028<img src=x onerror=bad()>"\n')
    sound_map.draw_map(folder, out, labels=root / "metadata.csv")
    html = out.read_text()
    tags = Tags(html).tags
    plain = sound_map.draw_map(write_index(tmp_path / "plain", ["a.wav"]), tmp_path / "plain.html")["file"]
    assert [tag for tag, _ in tags] == [tag for tag, _ in Tags(Path(plain).read_text()).tags]
    assert not any(key.startswith("on") or key in ("src", "href") for _, attributes in tags for key in attributes)
    data = html[html.index("</header>") :].split("Plotly.newPlot(")[-1]
    assert HOSTILE not in html and "\x1b" not in html and "\u202e" not in html and "\u2028" not in data

    (shown, (label, link)) = next(iter(points(html).items()))
    assert shown.startswith("<%2Fscript><script>") and "{plot_id}" in shown and label.startswith(HOSTILE)
    assert not re.search(r"[<>\"':]", link) and unquote(link) == f"sounds/{name}"
    trace = traces(html)[0]
    assert trace["name"].startswith("&lt;/script&gt;") and "<script" not in trace["text"][0]
    assert re.sub("<b>|</b>|<br>", "", trace["text"][0]).count("<") == 0


def test_the_page_needs_no_network(tmp_path):
    out = tmp_path / "map.html"
    sound_map.draw_map(write_index(tmp_path / "index", ["a.wav"]), out)
    tags = Tags(out.read_text()).tags
    assert ("audio", {"id": "player", "controls": None}) in tags
    assert not any("src" in attributes or tag == "link" for tag, attributes in tags)
    assert out.stat().st_size > 1_000_000  # plotly.js is in it
    assert os.listdir(tmp_path) and not list(tmp_path.glob(".*unfinished"))


def test_player_precedes_the_script_that_uses_it(tmp_path):
    """Plotly runs that script while the browser has yet to read what follows the plot."""
    out = tmp_path / "map.html"
    sound_map.draw_map(write_index(tmp_path / "index", ["a.wav"]), out)
    html = out.read_text()
    taken = re.findall(r'getElementById\("(\w+)"\)', html[html.rindex("Plotly.newPlot(") :])
    assert {"map", "player", "sound"} <= set(taken)
    for name in taken:
        assert 0 <= html.find(f'id="{name}"') < html.rindex("Plotly.newPlot(")


# --- what is refused


def test_bad_input_says_what_to_do(tmp_path):
    empty = tmp_path / "empty"
    with Table.create(empty, Manifest("model", "none", DIM, [DIM], DIM, "fp32", 10.0, 5.0, RATE, "")):
        pass
    folder, out = write_index(tmp_path / "index", ["a.wav"]), tmp_path / "map.html"
    (tmp_path / "metadata.csv").write_text("file_name,kind\na.wav,dog\n")
    (tmp_path / "names.csv").write_text("name,label\na.wav,dog\n")
    (tmp_path / "others.csv").write_text("file_name,label\nb.wav,dog\n")
    refused = {
        "holds no sounds yet: add some with `wavlink index": (empty, {}),
        "is no index": (tmp_path, {}),
        "cannot read the labels' file .*name a metadata.csv": (folder, {"labels": tmp_path / "none.csv"}),
        "no column 'label' .it has file_name, kind.: .*--label_column": (
            folder,
            {"labels": tmp_path / "metadata.csv"},
        ),
        "no column 'file_name'": (folder, {"labels": tmp_path / "names.csv"}),
        "names none of the sounds, such as a.wav: put it into": (folder, {"labels": tmp_path / "others.csv"}),
        "most=0 must be 1 or more": (folder, {"most": 0}),
        "seed=-1 0 to": (folder, {"seed": -1}),
    }
    for message, (index, options) in refused.items():
        with pytest.raises(ValueError, match=message):
            sound_map.draw_map(index, out, **options)
    with pytest.raises(ValueError, match="is a folder: name a file"):
        sound_map.draw_map(folder, tmp_path)
    assert not out.exists()
    with pytest.raises(SystemExit):
        sound_map.main([str(folder), "--out", str(out), "--labels", "x.csv", "--labels_from_text", "dog"])
