"""What the training loop costs over a bare step, and what cached gradients cost for an eighth of the memory.

    python benchmarks/train_step.py [--repeats 5] [--batch_size 64] [--mixed_precision no]

Towers of the sizes of Whisper-tiny and MiniLM with random weights, on clips made by code. All ways take the same
batches in turn, in one run, on one thread. Times are the processor's: other work on the machine changes them little.
The ratios of their medians count.

- bare: forward, backward, AdamW step on a batch that is ready.
- loop: what training does for a step (reductions, clipping, schedule, metrics, progress bar) on a batch that is ready.
- loop + data: the same with the batch from the loader, without a worker, so that decoding counts.
- cached: bare with `micro_batch_size` an eighth of the batch. Memory is what autograd keeps for the backward pass, but
  for parameters (in bf16 their casts count, which no micro batch makes smaller).
"""

import argparse
import statistics
import tempfile
import time

import records
import tables
import torch

from wavlink.training.grad_cache import backward
from wavlink.training.log import Log
from wavlink.training.loop import Run
from wavlink.training.recipes import Recipe

AUDIO = {
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "num_mel_bins": 80,
}
TEXT = {
    "model_type": "bert",
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "max_position_embeddings": 128,
}


class Kept:
    """Bytes that autograd keeps beside a model's parameters, at their most, while the context is on."""

    def __init__(self, model: torch.nn.Module):
        self.parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.now = self.most = 0
        self.storages = {}

    def __enter__(self) -> "Kept":
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.hooks.__exit__(*error)

    def _pack(self, tensor: torch.Tensor) -> "_KeptTensor":
        return _KeptTensor(self, tensor)


class _KeptTensor:
    """One saved tensor; a storage that several share counts once."""

    def __init__(self, kept: Kept, tensor: torch.Tensor):
        self.kept, self.tensor = kept, tensor
        self.key = tensor.untyped_storage().data_ptr()
        self.bytes = 0 if self.key in kept.parameters else tensor.untyped_storage().nbytes()
        kept.storages[self.key] = kept.storages.get(self.key, 0) + 1
        if kept.storages[self.key] == 1:
            kept.now += self.bytes
            kept.most = max(kept.most, kept.now)

    def __del__(self):
        self.kept.storages[self.key] -= 1
        if not self.kept.storages[self.key]:
            self.kept.now -= self.bytes


def bare(run: Run, batch: dict, micro_batch_size: int = 0) -> None:
    if micro_batch_size:
        backward(run.accelerator, run.model, batch, micro_batch_size)
    else:
        with run.accelerator.autocast():
            loss = run.model(**batch, return_loss=True).loss
        loss.backward()
    run.optimizer.step()
    run.optimizer.zero_grad()


def loop(run: Run, log: Log, batch: dict) -> None:
    learning_rate = run.schedule.get_last_lr()[0]
    loss, _ = run.learn(batch)
    log.step(loss, run.model.scale.item(), learning_rate)


def seconds(step, *arguments) -> float:
    began = time.process_time()
    step(*arguments)
    return time.process_time() - began


def measure(run: Run, log: Log, ready: list[dict], micro_batch_size: int, repeats: int) -> dict:
    """Processor seconds a step of each way, one figure a repeat; the ways take turns."""
    times = {name: [] for name in ("bare", "loop", "loop + data", "cached")}

    def with_data(batches, steps: int) -> None:
        for _ in range(steps):
            loop(run, log, next(batches))

    for number in range(repeats + 1):  # the first warms up
        turn = {
            "bare": sum(seconds(bare, run, batch) for batch in ready),
            "loop": sum(seconds(loop, run, log, batch) for batch in ready),
            "cached": sum(seconds(bare, run, batch, micro_batch_size) for batch in ready),
        }
        turn["loop + data"] = seconds(with_data, iter(run.feed.batches(run.processor, 1)), len(ready))
        if number:
            for name, value in turn.items():
                times[name].append(value / len(ready))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--mixed_precision", default="no")
    records.add_option(parser, "train_step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        recipe = Recipe(
            "train_step",
            audio_config=AUDIO,
            text_config=TEXT,
            batch_size=options.batch_size,
            mixed_precision=options.mixed_precision,
            num_workers=0,
            output_dir=folder,
        )
        run = Run(recipe)
        log = Log(run)
        run.model.train()
        batches = iter(run.feed.batches(run.processor, 1))
        ready = [next(batches) for _ in range(4)]
        micro_batch_size = options.batch_size // 8
        memory = {}
        for name, size in (("whole", 0), ("cached", micro_batch_size)):
            with Kept(run.model) as kept:
                backward(run.accelerator, run.model, ready[0], size)
            memory[name] = kept.most / 1e6
            run.optimizer.zero_grad()
        times = measure(run, log, ready, micro_batch_size, options.repeats)
        log.end()
    middle = {name: statistics.median(values) for name, values in times.items()}
    kept = {"bare": memory["whole"], "cached": memory["cached"]}
    rows = [
        [
            name,
            {"value": middle[name], "range": [min(values), max(values)], "digits": 2, "unit": "s"},
            records.number(middle[name] / middle["bare"], 3),
            records.number(kept[name], 0, "MB") if name in kept else None,
        ]
        for name, values in times.items()
    ]
    values = {"steps": records.table(["step", "processor time", "of bare", "kept for backward"], rows)}
    print(tables.markdown(values["steps"]))
    records.write(
        options.record,
        title="The training loop and cached gradients beside a bare step",
        seed=0,
        note=f"One thread, mixed precision {options.mixed_precision}, {options.batch_size} clips, cached in pieces of "
        f"{micro_batch_size}. Medians of {options.repeats} repeats, with their range.",
        values=values,
        raw={"seconds": times, "megabytes": memory},
    )


if __name__ == "__main__":
    main()
