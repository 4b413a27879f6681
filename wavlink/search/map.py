"""A map of an index: its sounds in two dimensions, neighbours near each other, in one HTML file with the sound a click
away. It needs no network.

    python -m wavlink.search.map INDEX --out map.html --labels sounds/metadata.csv
    python -m wavlink.search.map INDEX --out map.html --labels_from_text dog rain "a person talks"

Without labels, groups of sounds are found by k-means and named by the index's own model (zero-shot).

The places are t-SNE's (van der Maaten and Hinton, 2008): what is near is alike; how far apart two groups are says
little.
"""

import argparse
import base64
import mimetypes
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow
import pyarrow.compute as pc

from processing.datasets.audiofolder import read_metadata
from processing.file_names import existing
from wavlink import options as of
from wavlink.atomic_files import write_text
from wavlink.common_sounds import COMMON_SOUNDS
from wavlink.console import print_json
from wavlink.destinations import file_destination
from wavlink.evaluation.zero_shot import PROMPT, label_texts
from wavlink.sanitize import clean

from .index_model import embedder_of
from .listing import file_of
from .map_page import page
from .parts import with_large_texts
from .quantization import decode, encode
from .store import IndexFolder, Manifest

MOST = 20_000  # sounds of a map: beyond, browsers are slow to draw and t-SNE takes long
EMBEDDED_BYTES = 200_000  # of a sound inside the file, unless told
EMBEDDED_TOTAL = 100_000_000  # bytes of all sounds inside a file
UNLABELLED = "unlabelled"
GUESSED_LABELS = "The labels were guessed by the model."
GUESSED_GROUPS = "The groups were found, and their names guessed, by the model."
_FEW, _MOST_GROUPS = 8, 16  # fewer sounds than the first have no groups
_PERPLEXITY = 30.0
_SLOW = 5_000  # sounds that take more than a minute or so


def main(arguments: list[str] | None = None) -> None:
    run(_parser().parse_args(arguments))


def run(options: argparse.Namespace) -> None:
    options = dict(vars(options))
    as_json = options.pop("as_json")
    made = draw_map(options.pop("folder"), options.pop("out"), **options)
    if as_json:
        print_json(made)
    else:
        print(f"{made['file']}: {made['sounds']} sounds, labels: {len(made['labels'])}")


def draw_map(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    *,
    labels: str | os.PathLike = "",
    labels_from_text: Sequence[str] = (),
    label_column: str = "label",
    embed_audio: int = 0,
    most: int = MOST,
    seed: int = 0,
    model: str = "",
    device: str = "cpu",
    dtype: str = "float32",
) -> dict:
    """Writes the map and tells `file`, how many `sounds`, and of each of the `labels` how many.

    Args:
        folder: an index of `index_sounds`.
        out: the HTML file; links to sounds are relative to it.
        labels: a metadata.csv (or .jsonl) with `file_name`, from its own folder, and `label_column`.
        labels_from_text: the labels to choose from by the model, each put into `zero_shot.PROMPT`. Without both, a
            sound's label is the name of the folder it is in; where all are in one, groups are found and named (see
            `named_groups`), as far as the index's model is at hand.
        embed_audio: sounds of at most so many bytes go into the file, `EMBEDDED_TOTAL` in all.
        most: sounds drawn; of more, so many are chosen by `seed`, each as likely as another.
        seed: of the choice and of t-SNE. The same index, options and versions give the same file.
        model, device, dtype: as for `Index.open`; only where the model names sounds.

    Raises:
        ValueError: an empty or damaged index, labels that cannot be had, too much sound to embed.
    """
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name a file, such as {out / 'map.html'}")
    file_destination(out)
    if most < 1 or embed_audio < 0 or not 0 <= seed < 1 << 32:
        raise ValueError(
            f"most={most} must be 1 or more, embed_audio={embed_audio} 0 or more, seed={seed} 0 to 2^32 - 1"
        )
    manifest, held, paths, vectors = IndexFolder.reading(folder, lambda index: _read(index, most, seed))
    root = manifest.root
    if len(paths) < held:
        print(f"{most} of the {held} sounds are drawn, chosen by seed {seed}; --most takes more", file=sys.stderr)
    named = _from_metadata(labels, label_column, root, paths) if labels else None
    links = sound_links(root, paths, out, embed_audio)
    guessed = ""
    if labels_from_text:
        embedder = embedder_of(manifest, model, device, dtype)
        named, guessed = nearest_labels(vectors, labels_from_text, embedder.embed_text), GUESSED_LABELS
    if not named:
        named = [_folder_name(root, path) for path in paths]
        if len(set(named)) == 1 and len(paths) >= _FEW and (embedder := _at_hand(manifest, model, device, dtype)):
            named, guessed = named_groups(vectors, embedder.embed_text, seed), GUESSED_GROUPS
    named = [clean(label, 80) or UNLABELLED for label in named]
    if len(paths) > _SLOW:
        print(f"laying out {len(paths)} sounds takes some minutes", file=sys.stderr)
    title = clean(Path(folder).resolve().name)
    write_text(out, page(title, layout(vectors, seed), [clean(path, 200) for path in paths], named, links, guessed))
    return {"file": os.fspath(out), "sounds": len(paths), "labels": dict(Counter(named).most_common())}


def _read(index: IndexFolder, most: int, seed: int) -> tuple[Manifest, int, list[str], np.ndarray]:
    """The manifest, the number of sounds, the paths of those drawn in their order, and their vectors `[N, dim]`."""
    files = with_large_texts(index.files())
    paths = sorted(files.filter(pc.greater(files["rows"], 0))["path"].unique().to_pylist())
    if not paths:
        raise ValueError(f"{index.folder} holds no sounds yet: add some with `index SOUNDS --out {index.folder}`")
    held = len(paths)
    if held > most:
        paths = [paths[n] for n in sorted(np.random.default_rng(seed).choice(held, most, replace=False))]
    return index.manifest, held, paths, file_vectors(index, paths)


def file_vectors(index: IndexFolder, paths: Sequence[str]) -> np.ndarray:
    """`[N, dim]` fp32, L2-normalised: of each file the mean direction of its windows, whatever parts they are in."""
    manifest, wanted = index.manifest, pyarrow.array(paths, pyarrow.string())
    sums = np.zeros((len(paths), manifest.dim))
    for part in manifest.parts:
        windows = index.read(part, "embeddings")
        windows = windows.filter(pc.is_in(windows["path"], wanted))
        rows = pc.index_in(windows["path"], wanted).to_numpy()
        np.add.at(sums, rows, decode(manifest.codes(windows), manifest.dim, manifest.storage))
    return (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def layout(vectors: np.ndarray, seed: int) -> np.ndarray:
    """`[N, 2]` fp32 by t-SNE: of unit vectors `[N, dim]` the squared distances are 2 - 2 cos.

    On one thread: what several add up depends on which is first, and t-SNE makes much of the last bit.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    count = len(vectors)
    if count < 2 or not np.ptp(vectors, axis=0).any():  # alike, and PCA would start from 0 / 0
        return np.zeros((count, 2), np.float32)
    perplexity = min(_PERPLEXITY, max(1.0, (count - 1) / 3))  # it has about three times as many neighbours
    with threadpool_limits(1):
        return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)


def _from_metadata(metadata: str | os.PathLike, column: str, root: str, paths: Sequence[str]) -> list[str]:
    """The label of each path, "" of those without. Names count from the metadata's folder, or are the index's."""
    metadata = Path(metadata)
    try:
        rows = read_metadata(metadata)
    except OSError as error:
        raise ValueError(
            f"cannot read the labels' file {metadata} ({error.strerror}): name a metadata.csv with the columns "
            f"file_name,{column}"
        ) from error
    if not rows or column not in rows[0]:
        there = ", ".join(rows[0]) if rows else "no rows"
        raise ValueError(f"{metadata} has no column {column!r} (it has {there}): name one of them by --label_column")
    folder = os.path.abspath(metadata.parent)
    by_name = {row["file_name"]: row[column] or "" for row in rows}
    by_place = {os.path.normpath(existing(os.path.join(folder, name))): label for name, label in by_name.items()}
    found = [by_place.get(os.path.normpath(file_of(root, path) or path), by_name.get(path)) for path in paths]
    if without := sum(label is None for label in found):
        if without == len(found):
            raise ValueError(
                f"{metadata} names none of the sounds, such as {paths[0]}: put it into the folder that its file_name "
                f"counts from, or name sounds as the index does, from {root or 'its root'}"
            )
        print(f"{without} of the {len(found)} sounds are not in {metadata}: {UNLABELLED}", file=sys.stderr)
    return [str(label or "") for label in found]


def nearest_labels(vectors: np.ndarray, labels: Sequence[str], embed_text) -> list[str]:
    """Of each vector `[N, dim]` the label whose prompt is nearest; `embed_text` gives `[labels, dim or more]`."""
    labels = list(dict.fromkeys(labels))
    said = encode(embed_text([PROMPT.replace("{}", text) for text in label_texts(labels)]), vectors.shape[1], "fp32")
    return [labels[n] for n in (vectors @ said.T).argmax(1)]


def _at_hand(manifest: Manifest, model: str, device: str, dtype: str):
    """The index's embedder; None, and a line on stderr, where it cannot be loaded and none was named."""
    try:
        return embedder_of(manifest, model, device, dtype)
    except (ValueError, OSError) as error:
        if model:
            raise
        print(f"groups of sounds have no names without the index's model: {clean(error, 200)}", file=sys.stderr)
        return None


def named_groups(vectors: np.ndarray, embed_text, seed: int) -> list[str]:
    """Of each vector `[N, dim]` the words for its group, such as "rain, wind": the two common sounds (`COMMON_SOUNDS`)
    that the group is most like in comparison with all sounds.

    Groups are found by k-means.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    if not np.ptp(vectors, axis=0).any():  # all alike
        return [UNLABELLED] * len(vectors)
    count = min(_MOST_GROUPS, max(2, round((len(vectors) / 2) ** 0.5)), len(np.unique(vectors, axis=0)))
    with threadpool_limits(1):
        groups = KMeans(count, n_init=4, random_state=seed).fit_predict(vectors)
    said = embed_text([PROMPT.replace("{}", text) for text in COMMON_SOUNDS])
    cosines = vectors @ encode(said, vectors.shape[1], "fp32").T  # (N, sounds)
    words = {}
    for group in range(count):
        best = np.argsort(cosines.mean(0) - cosines[groups == group].mean(0), kind="stable")[:2]
        words[group] = ", ".join(COMMON_SOUNDS[n] for n in best)
    return [words[group] for group in groups.tolist()]


def _folder_name(root: str, path: str) -> str:
    above = path.split("/")[:-1]
    return above[-1] if above else os.path.basename(root)


def sound_links(root: str, paths: Sequence[str], out: Path, embedded: int) -> list[str]:
    """What plays each sound: a data URL of up to `embedded` bytes, a link relative to `out`, or "" of what has no file
    here.
    """
    files = [file_of(root, path) for path in paths]
    sizes = [os.path.getsize(file) if file and os.path.isfile(file) else -1 for file in files]
    inside = [0 <= size <= embedded and embedded > 0 for size in sizes]
    if (total := sum(size for size, fits in zip(sizes, inside, strict=True) if fits)) > EMBEDDED_TOTAL:
        raise ValueError(
            f"the sounds of up to {embedded} bytes have {total} bytes, more than the {EMBEDDED_TOTAL} that a file may "
            "hold: give --embed_audio a smaller limit, or --most fewer sounds"
        )
    if missing := sum(size < 0 for size in sizes):
        print(f"{missing} of the {len(sizes)} sounds are not where the index says, they stay silent", file=sys.stderr)
    if embedded and (large := sum(size > embedded for size in sizes)):
        print(f"{large} sounds of more than {embedded} bytes are linked, not embedded", file=sys.stderr)
    folder = os.path.dirname(os.path.abspath(out))
    return [
        "" if size < 0 else _data_url(file) if fits else _relative(file, folder)
        for file, size, fits in zip(files, sizes, inside, strict=True)
    ]


def _data_url(file: str) -> str:
    kind = mimetypes.guess_type("sound" + os.path.splitext(file)[1])[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(Path(file).read_bytes()).decode()}"


def _relative(file: str, folder: str) -> str:
    try:
        return quote(os.fsencode(os.path.relpath(file, folder).replace(os.sep, "/")))
    except ValueError:  # another drive
        return Path(file).as_uri()


def _parser() -> argparse.ArgumentParser:
    return of.parser_of(of.draw_map, "wavlink map", __doc__)
