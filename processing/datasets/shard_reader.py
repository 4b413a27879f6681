"""Reader of a stream's shards, which can resume and skips damaged shards."""

from collections.abc import Iterator
from dataclasses import dataclass

import datasets
import numpy as np
import pyarrow
from transformers.utils import logging

from .compat_datasets import files_of

logger = logging.get_logger(__name__)

MOST_DAMAGED = 100  # shards in a row; after more the disk or the network is at fault, not a shard
_DAMAGES = (ValueError, OSError, EOFError, pyarrow.ArrowException)


@dataclass(frozen=True)
class DamagedShard:
    """Marks the rest of a shard that cannot be read.

    Args:
        name: of its file, or its number where that is unknown.
        reason: the error.
    """

    name: str
    reason: str


class ShardReader:
    """The examples of one reader, over endless epochs, with a state to resume from.

    Of the shards, permuted by (seed, epoch), reader `number` out of `readers` reads every `readers`-th; where there
    are fewer shards than readers, each reads all and keeps every `readers`-th example. So in each epoch the readers'
    examples are disjoint, and together they are complete. Readers do not wait for each other: one with shorter shards
    is ahead in its epochs, and over many epochs every clip is used equally often.

    A damaged shard yields the examples before the damage, then a `DamagedShard`.

    Args:
        source: the stream.
        seed: of the order of the shards.
        number: of this reader.
        readers: number of all readers.
        state: as `state_dict` returns it.
    """

    def __init__(self, source: datasets.IterableDataset, seed: int, number: int, readers: int, state: dict):
        self.source = source
        self.seed = seed
        self.number = number
        self.readers = readers
        self.epoch, self.position, self.inside = state["epoch"], state["position"], state["inside"]
        self._resumed = state["stream"]
        self._stream = None
        self._lost: set[int] = set()  # unreadable shards since the last example
        self._lost_in_a_row = 0

    def state_dict(self) -> dict:
        """Return the position of the next example as plain values; `stream` is the state of `datasets`."""
        stream = self._resumed if self._stream is None else self._stream.state_dict()
        return {"epoch": self.epoch, "position": self.position, "inside": self.inside, "stream": stream}

    def __iter__(self) -> Iterator[tuple[dict | DamagedShard, tuple[int, int, int]]]:
        """Yield `(example, (epoch, shard, number inside the shard))` without end.

        Raises:
            ValueError: no example in an epoch, or `MOST_DAMAGED` or all shards in a row cannot be read.
        """
        while True:
            kept = self.inside > 0  # a state inside a shard was saved after an example
            shards = self._shards()
            while self.position < len(shards):
                for example in self._read(shards[self.position]):
                    kept = True
                    yield example, (self.epoch, shards[self.position], self.inside - 1)
                self.position, self.inside, self._stream = self.position + 1, 0, None
            if not kept and not self._lost:
                raise ValueError(
                    f"the stream's {self.source.num_shards} shards hold no example for reader {self.number} of "
                    f"{self.readers}: use fewer processes or workers, or remove empty shards"
                )
            self.epoch, self.position = self.epoch + 1, 0

    def _shards(self) -> list[int]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.source.num_shards).tolist()
        return order[self.number :: self.readers] if self.readers <= len(order) else order

    def _read(self, shard: int) -> Iterator[dict | DamagedShard]:
        self._stream = self.source.shard(num_shards=self.source.num_shards, index=shard)
        if self._resumed is not None:
            self._stream.load_state_dict(self._resumed)
            self._resumed = None
        try:
            # by `iter(1)`: in a worker of a DataLoader, plain iteration would divide the shard among workers again
            for batch in self._stream.iter(batch_size=1):
                self.inside += 1
                self._lost, self._lost_in_a_row = set(), 0
                if self._is_own(self.inside - 1):
                    yield {name: values[0] for name, values in batch.items()}
        except _DAMAGES as error:
            name = next(iter(files_of(self._stream)), f"shard {shard} of {self.source.num_shards}")
            if not self.inside:
                self._note_lost(shard, error)
            if self._is_own(self.inside):
                yield DamagedShard(name, str(error) or type(error).__name__)

    def _is_own(self, number: int) -> bool:
        """Whether an example of a shard is this reader's, and not another's that reads the same shard."""
        return self.readers <= self.source.num_shards or number % self.readers == self.number

    def _note_lost(self, shard: int, error: Exception) -> None:
        self._lost.add(shard)
        self._lost_in_a_row += 1
        if self._lost_in_a_row >= MOST_DAMAGED or len(self._lost) == self.source.num_shards:
            raise ValueError(
                f"{error}; {self._lost_in_a_row} shards cannot be read, one after another: check the disk or the "
                "network that holds them"
            ) from error
