"""The order of a data set's clips in training."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class BatchPlan(Sampler):
    """The batches of all epochs, each a list of `(epoch, index)`, of which this process takes its share.

    Batches are grouped by length: each epoch shuffles the clips, sorts them by duration within runs of
    `group` batches, cuts them, and shuffles the batches. So a batch holds clips of similar length drawn at random from
    1 / (number of runs) of the data; `group=1` is a plain shuffle. The plan depends on (seed, epoch) only; processes
    divide its batches. Clips that do not fill a batch are left out of that epoch.

    Args:
        lengths: of each clip, in seconds.
        batch_size: clips of all processes together.
        epochs: number of epochs.
        seed: of the order.
        group: batches in a run, see above.
        rank, world_size: this process, and the number of all.
        rows: the row of each clip in the data set (default: its position in `lengths`).

    Raises:
        ValueError: fewer than two clips in a batch, or none for one of the processes.
    """

    _drawn: tuple[int, np.ndarray, np.ndarray] | None = None  # the latest epoch, its batches, and its other clips

    def __init__(
        self,
        lengths: Sequence[float],
        batch_size: int,
        epochs: int,
        seed: int = 0,
        group: int = 16,
        rank: int = 0,
        world_size: int = 1,
        rows: np.ndarray | None = None,
    ):
        if min(batch_size, len(lengths)) < 2:
            raise ValueError(
                f"a contrastive loss needs at least two clips in a batch, got batch_size={batch_size} and a data set "
                f"of {len(lengths)}"
            )
        if min(batch_size, len(lengths)) < world_size:
            raise ValueError(
                f"batch_size={batch_size} and a data set of {len(lengths)} leave nothing for some of the "
                f"{world_size} processes: use fewer"
            )
        self.lengths = np.asarray(lengths)
        self.rows = np.arange(len(lengths)) if rows is None else np.asarray(rows)
        self.batch_size = min(batch_size, len(lengths))
        self.epochs = epochs
        self.seed = seed
        self.group = group
        self.rank = rank
        self.world_size = world_size
        self.start = 0  # batches that a resumed run skips

    @property
    def batches_per_epoch(self) -> int:
        """Number of full batches."""
        return len(self.lengths) // self.batch_size

    def __len__(self) -> int:
        return self.epochs * self.batches_per_epoch - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in range(self.start // self.batches_per_epoch, self.epochs):
            skipped = max(self.start - epoch * self.batches_per_epoch, 0)
            for batch in self.epoch(epoch)[skipped:]:
                yield [(epoch, int(index)) for index in batch[self.rank :: self.world_size]]

    def epoch(self, epoch: int) -> list[np.ndarray]:
        """Return the batches of an epoch, each `[batch_size]` rows of the data set, of all processes."""
        return list(self._draw(epoch)[0])

    def substitutes(self, epoch: int, index: int) -> Iterator[tuple[int, int]]:
        """Yield substitutes for a clip that cannot be read, the same in every process and every run.

        They are the clips at its position in the epoch's other batches, then one of the clips in no batch. So the
        substitutes of two clips of a batch differ, and none of them is in the batch.
        """
        if self._drawn is None or self._drawn[0] != epoch:
            self._drawn = (epoch, *self._draw(epoch))
        _, batches, rest = self._drawn
        number, position = np.argwhere(batches == index)[0]
        others = np.roll(batches[:, position], -number - 1)[:-1]
        return ((epoch, int(other)) for other in (*others, *rest[position : position + 1]))

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw an epoch: `[batches, batch_size]` rows of the data set, and the rows in no batch."""
        rng = np.random.default_rng((self.seed, epoch))
        order = rng.permutation(len(self.lengths))
        order, rest = np.split(order, [self.batches_per_epoch * self.batch_size])
        run = self.group * self.batch_size
        runs = [order[start : start + run] for start in range(0, len(order), run)]
        ordered = np.concatenate([run[np.argsort(self.lengths[run], kind="stable")] for run in runs])
        batches = self.rows[ordered].reshape(-1, self.batch_size)
        return batches[rng.permutation(len(batches))], self.rows[rest]
