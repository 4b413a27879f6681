"""Draw a map of an index: its sounds in two dimensions, similar ones near each other, each played by a click.

The map is one HTML file, which needs no network.

    wavlink map INDEX --out map.html --labels sounds/metadata.csv
    wavlink map INDEX --out map.html --labels_from_text dog rain "a person talks"

Without labels, sounds are grouped by k-means, and the groups named by the index's model (zero-shot).

The layout is t-SNE's (van der Maaten and Hinton, 2008): neighbours are similar; the distance between two groups means
little.
"""

import argparse
import base64
import mimetypes
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from processing.datasets.audiofolder import read_metadata
from wavlink.atomic_files import write_text
from wavlink.common_sounds import COMMON_SOUNDS
from wavlink.console import print_json
from wavlink.destinations import file_destination
from wavlink.embedder import Embedder
from wavlink.labels import PROMPT, label_texts
from wavlink.options import indexes as of
from wavlink.parsing import main_of
from wavlink.sanitize import clean, counted
from wavlink.vocabulary import unnamed

from .index_model import embedder_of
from .listing import file_of
from .manifest import Manifest
from .map_page import page
from .metadata import match_rows
from .scoring import truncated
from .stored import file_vectors
from .table import Storage, Table

MOST = 20_000  # sounds: with more, browsers and t-SNE are slow
EMBEDDED_BYTES = 200_000  # of `--embed_audio` without a number
EMBEDDED_TOTAL = 100_000_000  # bytes of all sounds inside a file
UNLABELLED = "unlabelled"
GUESSED_LABELS = "The labels were guessed by the model."
GUESSED_GROUPS = "The groups were found, and their names guessed, by the model."
_LEAST_SOUNDS, _MOST_GROUPS = 8, 16  # fewer sounds than the first have no groups
_PERPLEXITY = 30.0
_SLOW = 5_000  # sounds that take more than about a minute


def run(options: argparse.Namespace) -> None:
    """Draw a map, and print what it shows."""
    options = dict(vars(options))
    as_json = options.pop("as_json")
    made = draw_map(options.pop("folder"), options.pop("out"), **options)
    if as_json:
        print_json(made)
    else:
        print(f"{made['file']}: {counted(made['sounds'], 'sound')}, labels: {len(made['labels'])}")


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
    backend: str | None = None,
    precision: str | None = None,
    storage_options: Storage = None,
) -> dict:
    """Write a map, and return its `file`, the number of `sounds`, and the number of sounds of each of the `labels`.

    Args:
        folder: an index of `index_sounds`.
        out: the HTML file; links to sounds are relative to it.
        labels: a metadata.csv (or .jsonl, .parquet) with `file_name`, from its own folder, and `label_column`.
        labels_from_text: labels that the model chooses from, each in `zero_shot.PROMPT`. Without both, a sound's label
            is the name of its folder; if all sounds are in one folder, they are grouped and the groups named (see
            `named_groups`), provided that the index's model can be loaded.
        embed_audio: sounds of up to this many bytes are embedded in the file, `EMBEDDED_TOTAL` in all.
        most: the number of sounds that are drawn; of more, a random sample is.
        seed: of the sample and of t-SNE. The same index, options and versions give the same file.
        model, device, dtype, backend, precision: as for `Index.open`; used only where the model names sounds.
        storage_options: of an index in object storage, see Lance's `storage_options`.

    Raises:
        ValueError: an empty or damaged index, labels that cannot be read, too much sound to embed.
    """
    run = {"model": model, "device": device, "dtype": dtype, "backend": backend, "precision": precision}
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name a file, such as {out / 'map.html'}")
    file_destination(out)
    if most < 1 or embed_audio < 0 or not 0 <= seed < 1 << 32:
        raise ValueError(
            f"most={most} must be 1 or more, embed_audio={embed_audio} 0 or more, seed={seed} 0 to 2^32 - 1"
        )
    manifest, count, paths, vectors = Table.reading(folder, lambda table: _read(table, most, seed), storage_options)
    if len(paths) < count:
        print(f"{most} of the {count} sounds are drawn, chosen by seed {seed}; --most takes more", file=sys.stderr)
    names, guessed = _from_metadata(labels, label_column, manifest.root, paths) if labels else [], ""
    links = sound_links(manifest.root, paths, out, embed_audio)
    if labels_from_text or not names:
        names, guessed = _named(manifest, paths, vectors, labels_from_text, seed, run)
    names = [clean(label, 80) or UNLABELLED for label in names]
    if len(paths) > _SLOW:
        print(f"laying out {len(paths)} sounds takes some minutes", file=sys.stderr)
    title = clean(Path(folder).resolve().name)
    write_text(out, page(title, layout(vectors, seed), [clean(path, 200) for path in paths], names, links, guessed))
    return {"file": os.fspath(out), "sounds": len(paths), "labels": dict(Counter(names).most_common())}


def _read(table: Table, most: int, seed: int) -> tuple[Manifest, int, list[str], np.ndarray]:
    """Return the manifest, the number of sounds, the sorted paths of those drawn, and their vectors `[N, dim]`."""
    paths = sorted(path for path, file in table.files().items() if file.rows)
    if not paths:
        raise ValueError(
            f"{table.index} holds no sounds yet: add some with `wavlink index SOUNDS --out {table.index}`"
        )
    count = len(paths)
    if count > most:
        paths = [paths[n] for n in sorted(np.random.default_rng(seed).choice(count, most, replace=False))]
    return table.manifest, count, paths, file_vectors(table, paths)


def layout(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Return positions `[N, 2]` fp32 of unit vectors `[N, dim]` by t-SNE: squared distances are 2 - 2 cos.

    It runs on one thread: the sums of several depend on their timing, and t-SNE amplifies the last bit.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    count = len(vectors)
    if count < 2 or not np.ptp(vectors, axis=0).any():  # equal vectors, of which PCA would compute 0 / 0
        return np.zeros((count, 2), np.float32)
    perplexity = min(_PERPLEXITY, max(1.0, (count - 1) / 3))  # t-SNE uses about three times as many neighbours
    with threadpool_limits(1):
        return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors)


def _from_metadata(metadata: str | os.PathLike, column: str, root: str, paths: Sequence[str]) -> list[str]:
    """Return the label of each path, "" without one. Names are relative to the metadata's folder or to the root."""
    metadata = Path(metadata)
    try:
        rows = read_metadata(metadata)
    except OSError as error:
        raise ValueError(
            f"cannot read the labels' file {metadata} ({error.strerror}): name a metadata.csv with the columns "
            f"file_name,{column}"
        ) from error
    if not rows or column not in rows[0]:
        present = ", ".join(rows[0]) if rows else "no rows"
        raise ValueError(f"{metadata} has no column {column!r} (it has {present}): name one of them by --label_column")
    found, _ = match_rows(metadata, rows, root, paths)
    labels = [found[path][column] if path in found else None for path in paths]
    if missing := len(paths) - len(found):
        print(f"{missing} of the {len(labels)} sounds are not in {metadata}: {UNLABELLED}", file=sys.stderr)
    return [str(label or "") for label in labels]


def nearest_labels(
    vectors: np.ndarray, labels: Sequence[str], embed_text: Callable[[list[str]], np.ndarray]
) -> list[str]:
    """Return for each vector `[N, dim]` the label whose prompt is nearest.

    Args:
        embed_text: returns vectors `[texts, dim or more]`.
    """
    labels = list(dict.fromkeys(labels))
    return [labels[n] for n in _cosines(vectors, label_texts(labels), embed_text).argmax(1)]


def _cosines(vectors: np.ndarray, names: Sequence[str], embed_text: Callable[[list[str]], np.ndarray]) -> np.ndarray:
    """Return the cosines `[N, names]` of vectors `[N, dim]` with each name in the prompt."""
    texts = embed_text([PROMPT.replace("{}", name) for name in names])
    return vectors @ truncated(texts, vectors.shape[1]).T


def _named(
    manifest: Manifest, paths: Sequence[str], vectors: np.ndarray, labels: Sequence[str], seed: int, run: dict
) -> tuple[list[str], str]:
    """Return each sound's name by `labels`, its folder or its group (see `draw_map`), and a note on guessed names."""
    if labels:
        return nearest_labels(vectors, labels, embedder_of(manifest, **run).embed_text), GUESSED_LABELS
    names = [_folder_name(manifest.root, path) for path in paths]
    alike = len(set(names)) == 1 and len(paths) >= _LEAST_SOUNDS
    if not (alike and (embedder := _embedder_or_none(manifest, run))):
        return names, ""
    with unnamed():
        return named_groups(vectors, embedder.embed_text, seed), GUESSED_GROUPS


def _embedder_or_none(manifest: Manifest, run: dict) -> Embedder | None:
    """Load the index's model; where it cannot be loaded and nothing of it was named, warn and return None."""
    try:
        return embedder_of(manifest, **run)
    except (ValueError, OSError) as error:
        if run["model"] or run["backend"] or run["precision"]:
            raise
        print(f"groups of sounds have no names without the index's model: {clean(error, 200)}", file=sys.stderr)
        return None


def named_groups(vectors: np.ndarray, embed_text: Callable[[list[str]], np.ndarray], seed: int) -> list[str]:
    """Group vectors `[N, dim]` by k-means, and return the name of each one's group, such as "rain, wind".

    The name is the two common sounds (`COMMON_SOUNDS`) whose cosine with the group is largest in comparison with that
    of all sounds.

    Args:
        embed_text: returns vectors `[texts, dim or more]`.
        seed: of k-means.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    if not np.ptp(vectors, axis=0).any():  # all are equal
        return [UNLABELLED] * len(vectors)
    count = min(_MOST_GROUPS, max(2, round((len(vectors) / 2) ** 0.5)), len(np.unique(vectors, axis=0)))
    with threadpool_limits(1):
        groups = KMeans(count, n_init=4, random_state=seed).fit_predict(vectors)
    cosines = _cosines(vectors, COMMON_SOUNDS, embed_text)
    names = []
    for group in range(count):
        best = np.argsort(cosines.mean(0) - cosines[groups == group].mean(0), kind="stable")[:2]
        names.append(", ".join(COMMON_SOUNDS[n] for n in best))
    return [names[group] for group in groups]


def _folder_name(root: str, path: str) -> str:
    above = path.split("/")[:-1]
    return above[-1] if above else os.path.basename(root)


def sound_links(root: str, paths: Sequence[str], out: Path, embedded: int) -> list[str]:
    """Return a URL for each sound: data of up to `embedded` bytes, a link relative to `out`, or "" without a file.

    Raises:
        ValueError: the embedded sounds have more than `EMBEDDED_TOTAL` bytes.
    """
    files = [file_of(root, path) for path in paths]
    sizes = [os.path.getsize(file) if file and os.path.isfile(file) else -1 for file in files]
    fits = [0 <= size <= embedded and embedded > 0 for size in sizes]
    if (total := sum(size for size, fit in zip(sizes, fits, strict=True) if fit)) > EMBEDDED_TOTAL:
        raise ValueError(
            f"the sounds of up to {embedded} bytes have {total} bytes, more than the {EMBEDDED_TOTAL} that a file may "
            "hold: give --embed_audio a smaller limit, or --most fewer sounds"
        )
    if missing := sum(size < 0 for size in sizes):
        print(
            f"{missing} of the {len(sizes)} sounds are not where the index says: they cannot be played",
            file=sys.stderr,
        )
    if embedded and (large := sum(size > embedded for size in sizes)):
        print(f"{large} sounds of more than {embedded} bytes are linked, not embedded", file=sys.stderr)
    folder = os.path.dirname(os.path.abspath(out))
    return [
        "" if size < 0 else _data_url(file) if fit else _relative(file, folder)
        for file, size, fit in zip(files, sizes, fits, strict=True)
    ]


def _data_url(file: str) -> str:
    kind = mimetypes.guess_type("sound" + os.path.splitext(file)[1])[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(Path(file).read_bytes()).decode()}"


def _relative(file: str, folder: str) -> str:
    try:
        return quote(os.fsencode(os.path.relpath(file, folder).replace(os.sep, "/")))
    except ValueError:  # another drive
        return Path(file).as_uri()


main = main_of("wavlink map", of.draw_map, run)
