"""Log-mels of a data set's whole clips, computed once and mapped into memory."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import filelock
import numpy as np
from datasets import Dataset

from processing.audio import load_column
from processing.feature_extraction_wavlink import WavLinkFeatureExtractor

from .arrow_files import cache_folder
from .fingerprints import rows_digest

_VERSION = 1  # of the files


class KeptFeatures:
    """The log-mel `[F, T]` float32 of each clip by its row, None where it has none: unreadable, or over 30 s.

    Two files hold them, in `HF_HOME/wavlink/features`: the frames of all clips one after another, and their numbers.
    Both are named by a digest of the rows and the extractor's settings, so another run on the same data reads them.
    One process computes them while the others of the machine wait.

    Args:
        dataset: with a column `audio`.
        columns: of captions, for the digest.
        extractor: of the model.

    Raises:
        ValueError: the extractor of another tower than Whisper.
    """

    def __init__(self, dataset: Dataset, columns: Sequence[str], extractor: WavLinkFeatureExtractor):
        if not isinstance(extractor, WavLinkFeatureExtractor):
            raise ValueError("cache_features keeps the log-mels of a Whisper tower: leave it out with HTS-AT or PaSST")
        settings = json.dumps(extractor.to_dict(), sort_keys=True, default=str)
        about = repr((_VERSION, settings, rows_digest(dataset, columns)))
        name = hashlib.blake2b(about.encode(), digest_size=16).hexdigest()
        self.bins = extractor.feature_size
        self.frames_file = cache_folder("features") / f"{name}.frames"
        self.counts_file = self.frames_file.with_suffix(".npy")
        self._frames: np.ndarray | None = None
        self.frames_file.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{self.frames_file}.lock"):
            if not self._is_written(len(dataset)):
                self._write(dataset, extractor)
        counts = np.load(self.counts_file)
        self.stops = counts.cumsum()
        self.starts = self.stops - counts

    def __getitem__(self, row: int) -> np.ndarray | None:
        start, stop = self.starts[row], self.stops[row]
        if start == stop:
            return None
        if self._frames is None:
            self._frames = np.memmap(self.frames_file, np.float32, "r").reshape(-1, self.bins)
        return self._frames[start:stop].T

    def __getstate__(self) -> dict:
        return {**vars(self), "_frames": None}  # each process maps the file itself

    def _is_written(self, clips: int) -> bool:
        """Whether the files are there and as long as each other says; a file of another length is written again."""
        try:
            counts = np.load(self.counts_file)
            return len(counts) == clips and os.path.getsize(self.frames_file) == counts.sum() * self.bins * 4
        except (OSError, EOFError, ValueError):
            return False

    def _write(self, dataset: Dataset, extractor: WavLinkFeatureExtractor) -> None:
        unfinished = [Path(f"{file}.{os.getpid()}") for file in (self.frames_file, self.counts_file)]
        try:
            counts = []
            with open(unfinished[0], "wb") as file:
                for row in dataset.select_columns(["audio"]):
                    frames = _log_mel(row["audio"], extractor)
                    counts.append(len(frames))
                    file.write(frames.tobytes())
            with open(unfinished[1], "wb") as file:
                np.save(file, np.array(counts, np.int64))
            for written, target in zip(unfinished, (self.frames_file, self.counts_file), strict=True):
                os.replace(written, target)
        finally:
            for file in unfinished:
                file.unlink(missing_ok=True)


def _log_mel(audio: object, extractor: WavLinkFeatureExtractor) -> np.ndarray:
    """Compute the log-mel `[T, F]` of a clip; no frames where the clip cannot be read or is over the limit."""
    rate = extractor.sampling_rate
    try:
        batch = extractor(load_column(audio, rate), sampling_rate=rate, padding=False)
    except ValueError:  # training meets the same error, or crops the clip
        return np.empty((0, extractor.feature_size), np.float32)
    return np.ascontiguousarray(batch["input_features"][0].T, np.float32)
