"""Sounds of an index, found by text, by sounds that are alike, by both, and without what they should not be.

```python
>>> index = Index.open("sounds.index")
>>> for hit in index.query("a dog barks far away", without="a person talks", top_k=5):
...     print(f"{hit.score:.3f} {hit.path} {hit.start:.1f}-{hit.end:.1f} s")
```
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow
import pyarrow.compute as pc

from processing.audio_inputs_wavlink import is_source
from processing.sources import file_of
from processing.windows import stream_windows

from .embedder import Embedder, mean_direction
from .index_folder import IndexFolder
from .index_model import embedder_of
from .index_parts import with_large_texts
from .vectors import FlatIndex, decode, encode

WEIGHT = 0.5  # of what is unwanted beside what is wanted


@dataclass(frozen=True)
class Hit:
    """A window of a sound: `score` is the cosine with the query, `start` and `end` are in seconds."""

    path: str  # below the index's root
    score: float
    start: float
    end: float
    file: str | None = None  # where it is; None if the index does not know its root here
    missing: bool = False  # there is no such file any more
    changed: bool = False  # it is not what was embedded: index it again


class Index:
    """An index in memory, opened by `Index.open(folder)`."""

    def __init__(self, folder: IndexFolder, dim: int, embedder: Embedder | None, options: dict):
        self.manifest, self._embedder, self._options = folder.manifest, embedder, options
        self._found = FlatIndex(dim, self.manifest.storage)
        parts = []
        for part in self.manifest.parts:
            windows = folder.read(part, "embeddings")
            try:
                self._found.add(self._codes(windows, dim))
            except ValueError as error:
                raise ValueError(f"{folder.folder / 'embeddings' / part.name}: {error}") from error
            parts.append(with_large_texts(windows.select(["path", "start", "end"])))
        none = with_large_texts(self.manifest.schema.empty_table().select(["path", "start", "end"]))
        self._rows = pyarrow.concat_tables([none, *parts])
        files = folder.files()
        self._files = {name: files[name] for name in ("path", "size", "version")}

    @classmethod
    def open(
        cls,
        folder: str | os.PathLike,
        model: str | Embedder = "",
        *,
        dim: int | None = None,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> "Index":
        """
        Args:
            folder: of `index_sounds`.
            model: the one that the index was made by, where this machine does not have it under the name in the index
                (see `embedder_of`); loaded at the first query.
            dim: of the nested dims, fewer than the index's (default: its own).

        Raises:
            ValueError: no index, a damaged one (every part's checksum is verified), or such a dim.
        """
        options = {"model": model, "device": device, "dtype": dtype}

        def read(index: IndexFolder) -> "Index":
            nested = [nested for nested in index.manifest.matryoshka_dims if nested <= index.manifest.dim]
            if dim not in (None, *nested):
                raise ValueError(f"dim={dim}: the index can be searched at {', '.join(map(str, nested))}")
            return cls(index, dim or index.manifest.dim, None, options)

        return IndexFolder.reading(folder, read)

    def __len__(self) -> int:
        """Windows."""
        return len(self._rows)

    @property
    def embedder(self) -> Embedder:
        if self._embedder is None:
            self._embedder = embedder_of(self.manifest, **self._options)
        return self._embedder

    def query(
        self,
        text: str | Sequence[str] = (),
        sound=(),
        without: str | Sequence[str] = (),
        without_sound=(),
        *,
        weight: float = WEIGHT,
        top_k: int = 10,
        windows: bool = False,
    ) -> list[Hit]:
        """The nearest sounds, best first.

        What is asked is the direction of p - weight * n: p is the mean of all wanted texts' and sounds' vectors,
        normalised, n that of the unwanted ones. A sound's vector is the normalised mean of its windows'.

        Args:
            text, sound: what is wanted, one or several; sounds are files, or paths of the index, or what else an
                `audio` column holds (bytes, dicts, decoders).
            without, without_sound: what is not.
            weight: 0 or more.
            top_k: how many, fewer where there are no more.
            windows: every window counts for itself; otherwise each file is there once, with its best.

        Raises:
            ValueError: an empty index, nothing wanted, a sound that cannot be read, top_k under 1.
        """
        if not len(self):
            raise ValueError("the index holds no sounds yet: index some")
        if top_k < 1:
            raise ValueError(f"top_k must be 1 or more, got {top_k}")
        if not weight >= 0:
            raise ValueError(f"the weight of what is unwanted must be 0 or more, got {weight}")
        wanted, unwanted = self._vectors(text, sound), self._vectors(without, without_sound)
        if not len(wanted):
            raise ValueError("say what to find: a text, or a sound that is alike")
        asked = mean_direction(wanted) - (weight * mean_direction(unwanted) if len(unwanted) else 0)
        return self.nearest(asked, top_k, windows)

    def nearest(self, vector: np.ndarray, top_k: int = 10, windows: bool = False) -> list[Hit]:
        """The same for a query's vector `[dims]`, of any length (norm) but zero."""
        if not vector[: self._found.dim].any():
            raise ValueError("what is wanted and what is not cancel out: ask for something else")
        reach = top_k
        while True:
            scores, rows = (found[0] for found in self._found.search(vector[None], min(reach, len(self))))
            taken = self._rows.take(rows)
            paths = taken["path"].to_pylist()
            first = (
                list(range(len(rows)))
                if windows
                else list({path: n for n, path in reversed([*enumerate(paths)])}.values())
            )
            if len(first) >= top_k or reach >= len(self):
                break
            reach *= 4
        places = sorted(first)[:top_k]
        starts, ends = (taken[name].to_pylist() for name in ("start", "end"))
        return [self._hit(paths[n], float(scores[n]), starts[n], ends[n]) for n in places]

    def _hit(self, path: str, score: float, start: float, end: float) -> Hit:
        file = file_of(self.manifest.root, path)
        if file is None:
            return Hit(path, score, start, end)
        try:
            there = os.stat(file)
        except OSError:
            return Hit(path, score, start, end, file, missing=True)
        row = pc.index(self._files["path"], path).as_py()
        was = [self._files[name][row].as_py() for name in ("size", "version")]
        return Hit(path, score, start, end, file, changed=was != [there.st_size, there.st_mtime_ns])

    def _codes(self, windows: pyarrow.Table, dim: int) -> np.ndarray:
        own, storage = self.manifest.dim, self.manifest.storage
        codes = self.manifest.codes(windows)
        return codes if dim == own else encode(decode(codes, own, storage), dim, storage)

    def _vectors(self, texts, sounds) -> list[np.ndarray]:
        texts, sounds = ([each] if is_source(each) else list(each) for each in (texts, sounds))
        if any(not text.strip() for text in texts):
            raise ValueError("a text to search by is empty")
        return [*(self.embedder.embed_text(texts) if texts else []), *map(self._sound, sounds)]

    def _sound(self, file) -> np.ndarray:
        manifest = self.manifest
        if isinstance(file, str | os.PathLike) and not os.path.exists(file):  # it may be named as in the results
            file = file_of(manifest.root, os.fspath(file)) or file
        windows = stream_windows(file, manifest.window, manifest.hop, manifest.sampling_rate)
        return mean_direction(list(self.embedder.embed_clips(window.samples for window in windows)))


def as_dict(hit: Hit) -> dict:
    """For JSON, the marks only where they are true."""
    return {name: value for name, value in asdict(hit).items() if value is not False}
