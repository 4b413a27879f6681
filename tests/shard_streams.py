"""Streams of shards that tests of streaming share."""

from itertools import islice

import datasets

from processing.datasets.shards import load_stream
from processing.datasets.streaming import StreamedBatches

from .tar_streams import collate, sound, write_tar

SHARDS = (7, 3, 9, 4)  # clips in each: 23


def tars(folder, shards=SHARDS) -> str:
    """`train-0.tar` ...: clips `c0.wav`, `c1.wav`, ... with `{"caption": "0"}` and so on."""
    for shard, clips in enumerate(shards):
        files = {}
        for number in range(sum(shards[:shard]), sum(shards[:shard]) + clips):
            files |= {f"c{number}.wav": sound(number), f"c{number}.json": b'{"caption": "%d"}' % number}
        write_tar(folder / f"train-{shard}.tar", files)
    return str(folder)


def parquets(folder, shards=SHARDS) -> str:
    """The same clips in files with several row groups."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard, clips in enumerate(shards):
        begin = sum(shards[:shard])
        rows = [
            {"audio": {"bytes": sound(n), "path": f"c{n}.wav"}, "caption": str(n)} for n in range(begin, begin + clips)
        ]
        dataset = datasets.Dataset.from_list(rows)
        dataset = dataset.cast(datasets.Features({**dataset.features, "audio": datasets.Audio(decode=False)}))
        dataset.to_parquet(folder / f"train-{shard}.parquet", batch_size=4)
    return str(folder)


def stream(data, collator=collate, batch_size=4, window=2, num_workers=0, columns=("caption",), **options):
    source = load_stream(data, "train") if isinstance(data, str) else data
    return StreamedBatches(source, columns, collator, batch_size, window=window, num_workers=num_workers, **options)


def ids(batches: StreamedBatches, count: int) -> list[list[int]]:
    return [batch["id"].tolist() for batch in islice(batches, count)]


def flat(lists) -> list[int]:
    return [item for items in lists for item in items]
