"""Check a CUDA card in under 8 minutes: vectors beside the CPU's, training of Base, cached gradients, compile.

    python benchmarks/gpu_check.py [--record [FILE]]        # after pip install -e '.[train]'
    python benchmarks/gpu_check.py --device cpu --tiny      # the same code in seconds, on a tiny model

Nothing is downloaded: the model is Base by its config (whisper-base.en and CLIP ViT-B/32), with random weights, and
the clips are noise. Without a card it says so in one line and exits with 2.

- vectors: of clips of 3 and 10 s and of texts, in fp32, in bf16, with FlashAttention (torch's own kernel where the
  package flash_attn is missing), each beside the CPU's fp32. The scores are the least cosine of a pair and the largest
  absolute difference.
- train: steps of AdamW in bf16; the loss of the same batch must fall.
- cached: a step with 768 clips in pieces; gradients of a smaller batch, whole and in pieces, are compared in fp32.
- compile: the same as train with compiled towers; the first step is timed apart. On a CPU there is no C++.

Each stage is a process of its own with a time budget, so that a failure or a card's error ends that stage alone; it is
recorded with what was measured before. The exit code is 0 if every stage passed, else 1. SIGINT and SIGTERM end the
check after its record is written, with 130 and 143.
"""

import argparse
import copy
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from modeling_wavlink import WavLinkConfig, WavLinkModel
from wavlink.atomic_files import write_text
from wavlink.console import StopSignal
from wavlink.training.grad_cache import backward

try:
    from benchmarks import records, tables
except ModuleNotFoundError:  # run as a script
    import records
    import tables

TINY = {
    "audio_config": {
        "d_model": 32,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "num_mel_bins": 80,
    },
    "text_config": {
        "model_type": "clip_text_model",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 1000,
        "bos_token_id": 998,
        "eos_token_id": 999,
        "projection_dim": 32,
    },
    "projection_dim": 32,
}
BUDGETS = {"vectors": 90, "train": 90, "cached": 120, "compile": 150}  # seconds; 7.5 minutes in all
_LEFT = 15  # seconds of a budget in which a stage begins no further step
# Of vectors beside the CPU's in fp32, from the precision of the numbers: bf16 has 8 bits, and cuDNN's convolutions
# round fp32 to TF32's 11.
LEAST_COSINE = {"fp32": 0.9999, "bf16": 0.99, "flash": 0.99}
GRADIENT_ERROR = 5e-3  # of the gradient's norm, cached beside whole, in fp32
PIECE = {"cuda": 64, "cpu": 8}  # clips embedded at once


@dataclass
class Check:
    """A stage: what is run where, and its results, which are written to `file` as they come."""

    device: torch.device
    tiny: bool
    file: Path
    rows: list[list] = field(default_factory=list)
    raw: dict = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def __post_init__(self):
        torch.manual_seed(0)
        self.model = WavLinkModel(WavLinkConfig(**TINY) if self.tiny else WavLinkConfig.for_size("base")).eval()
        self.steps = 3 if self.tiny else 50
        self.large = 24 if self.tiny else 768  # clips of the step with cached gradients
        self.small = 8 if self.tiny else 32  # clips of other steps
        self.piece = 4 if self.tiny else PIECE.get(self.device.type, 64)

    def batch(self, clips: int, seconds: float, seed: int = 0) -> dict[str, torch.Tensor]:
        """Return noise as log-mel, the last clip half as long, and random texts of up to 24 tokens."""
        draw = torch.Generator().manual_seed(seed)
        frames = round(100 * seconds)
        config = self.model.config
        mask = torch.ones(clips, frames, dtype=torch.long)
        mask[-1, frames // 2 :] = 0
        end = config.text_config.eos_token_id
        texts = torch.randint(3, min(end, config.text_config.vocab_size) - 1, (clips, 24), generator=draw)
        lengths = torch.randint(6, 25, (clips,), generator=draw)
        attention_mask = (torch.arange(24) < lengths[:, None]).long()
        texts[torch.arange(clips), lengths - 1] = end
        features = torch.randn(clips, config.audio_config.num_mel_bins, frames, generator=draw)
        batch = {"input_features": features, "input_features_mask": mask}
        batch |= {"input_ids": texts, "attention_mask": attention_mask}
        return {name: value.to(self.device) for name, value in batch.items()}

    def copy(self) -> WavLinkModel:
        """Return the model with its first weights, on the device."""
        return copy.deepcopy(self.model).to(self.device)

    def autocast(self, bf16: bool = True):
        """Return a context that computes in bf16."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def add(self, stage: str, measure: str, value: float | None, unit: str = "", digits: int = 4, good=None) -> None:
        """Note a figure; `good` says whether it is as it must be, None where nothing is required."""
        passed = None if good is None else "yes" if good else "no"
        cell = None if value is None else records.number(value, digits, unit) if math.isfinite(value) else str(value)
        self.rows.append([stage, measure, cell, passed])
        print(f"{stage:10}{measure:34}{'' if value is None else f'{value:.{digits}f}':>14} {unit:8}{passed or ''}")
        if good is False:
            self.failed.append(f"{stage}: {measure}")
        self.save()

    def save(self) -> None:
        """Write the results so far."""
        results = {"rows": self.rows, "raw": self.raw, "failed": self.failed}
        write_text(self.file, json.dumps(results))  # atomic: the process may be stopped at any time

    def run(self, name: str, work: Callable[["Check", float], None]) -> None:
        """Run a stage; its error, if it fails, is recorded."""
        began = time.perf_counter()
        try:
            with self.memory(name):
                work(self, began + BUDGETS[name] - _LEFT)
        except Exception as error:  # of whatever kind: it belongs to the results
            self.raw[f"{name} error"] = traceback.format_exc()
            line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self.add(name, line, None, good=False)
        self.add(name, "time", time.perf_counter() - began, "s", 1)

    @contextmanager
    def memory(self, name: str):
        """Note the device's peak memory in a context."""
        cuda = self.device.type == "cuda"
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        yield
        if cuda:
            self.add(name, "peak memory", torch.cuda.max_memory_allocated() / 1e9, "GB", 2)

    def wait(self) -> None:
        """Wait until the device has computed everything."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize()


class Bare:
    """The part of an Accelerator that cached gradients use, for one device."""

    num_processes, scaler = 1, None

    def __init__(self, check: Check, bf16: bool):
        self.device, self.autocast = check.device, lambda: check.autocast(bf16)

    def backward(self, loss: torch.Tensor) -> None:
        """Compute gradients."""
        loss.backward()

    def unwrap_model(self, model: torch.nn.Module) -> torch.nn.Module:
        """Return the model."""
        return model

    def no_sync(self, _: torch.nn.Module) -> nullcontext:
        """Return a context without effect."""
        return nullcontext()


def vectors(check: Check, deadline: float) -> None:
    """Compare the device's vectors with the CPU's."""
    for seconds in (3, 10):
        batch = check.batch(4, seconds)
        on_cpu = {name: value.cpu() for name, value in batch.items()}
        with torch.no_grad():
            expected = check.model(**on_cpu, return_loss=False)
        for name, model, kernel in _variants(check):
            if time.perf_counter() > deadline:
                raise TimeoutError("the time of this stage is over")
            with torch.no_grad(), kernel, check.autocast(name != "fp32"):
                output = model(**batch, return_loss=False)
            for side in ("audio_embeds", "text_embeds"):
                ours, theirs = output[side].float().cpu(), expected[side]
                cosine = float((ours * theirs).sum(1).min())
                what = f"{name} {side.partition('_')[0]} {seconds} s"
                check.add("vectors", f"{what}: least cosine", cosine, "", 6, cosine >= LEAST_COSINE[name])
                check.add("vectors", f"{what}: largest difference", float((ours - theirs).abs().max()), "", 6)


def _variants(check: Check):
    """Yield name, model and a context of each way to compute."""
    yield "fp32", check.copy(), nullcontext()
    yield "bf16", check.copy(), nullcontext()
    model = check.copy()
    try:
        model.set_attn_implementation("flash_attention_2")
        check.raw["flash"] = "flash_attn"
    except (ImportError, ValueError):
        # A mask rules torch's flash kernel out, so torch may fall back to the memory-efficient one.
        check.raw["flash"] = "torch sdpa"
        yield "flash", model, sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])
    else:
        model = model.to(torch.bfloat16)
        yield "flash", model, nullcontext()


def train(check: Check, deadline: float, compiled: bool = False) -> None:
    """Time training steps on one batch, whose loss must fall."""
    stage = "compile" if compiled else "train"
    model = check.copy().train()
    if compiled:
        for tower in (model.audio_model, model.text_model):
            tower.compile(dynamic=True, backend="aot_eager" if check.device.type == "cpu" else "inductor")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    batch = check.batch(check.small, 10 if not check.tiny else 1)
    losses, times = [], []
    for _ in range(check.steps):
        check.wait()
        began = time.perf_counter()
        with check.autocast():
            loss = model(**batch, return_loss=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        check.wait()
        times.append(time.perf_counter() - began)
        if time.perf_counter() > deadline:
            break
    check.raw[stage] = {"losses": losses, "seconds": times}
    usual = sorted(times[1:] or times)[len(times[1:]) // 2]
    check.add(stage, "steps", len(losses), "", 0, len(losses) == check.steps)
    check.add(stage, "first step", times[0], "s", 2)
    check.add(stage, "clips a second", check.small / usual, "", 1)
    check.add(stage, "loss: last of first", losses[-1] / losses[0], "", 3, losses[-1] < losses[0])


def cached(check: Check, deadline: float) -> None:
    """Compare cached gradients with whole ones in fp32, then time a large batch in bf16."""
    seconds = 1 if check.tiny else 3
    batch = check.batch(check.small, seconds)
    found = []
    for piece in (0, check.small // 4):
        model = check.copy().train()
        backward(Bare(check, bf16=False), model, batch, piece)
        found.append(torch.cat([p.grad.flatten().float().cpu() for p in model.parameters() if p.grad is not None]))
    error = float((found[0] - found[1]).norm() / found[0].norm())
    check.add("cached", "gradients: relative difference", error, "", 7, error < GRADIENT_ERROR)
    model = check.copy().train()
    batch = check.batch(check.large, 1 if check.tiny else 10)
    times = []
    while not times or (len(times) < 3 and time.perf_counter() + times[-1] < deadline):
        check.wait()
        began = time.perf_counter()
        loss = backward(Bare(check, bf16=True), model, batch, check.piece)
        check.wait()
        times.append(time.perf_counter() - began)
        model.zero_grad()
    check.raw["cached"] = {"seconds": times, "loss": loss.item(), "clips": check.large, "piece": check.piece}
    check.add("cached", f"{check.large} clips: loss", loss.item(), "", 3, bool(torch.isfinite(loss)))
    check.add("cached", f"{check.large} clips: clips a second", check.large / min(times), "", 1)


def compiled(check: Check, deadline: float) -> None:
    """Time training steps with compiled towers."""
    train(check, deadline, compiled=True)


STAGES = {"vectors": vectors, "train": train, "cached": cached, "compile": compiled}


def main(arguments: list[str] | None = None) -> int:
    """Run the stages and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="such as cuda, cuda:1 or cpu")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few clips, to test this script")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"of {', '.join(STAGES)}")
    parser.add_argument("--results", type=Path, help=argparse.SUPPRESS)  # of the process of one stage
    records.add_option(parser, "gpu_check")
    options = parser.parse_args(arguments)
    stages = options.stages.split(",")
    if unknown := sorted({*stages} - {*STAGES}):
        parser.error(f"no stage {', '.join(unknown)}: the stages are {', '.join(STAGES)}")
    try:
        device = torch.device(options.device)
    except RuntimeError:
        parser.error(f"no device {options.device!r} is known: give one such as cuda, cuda:1 or cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        missing = "CUDA card" if device.index is None else f"CUDA card {device.index}"
        print(f"gpu_check.py: there is no {missing} here, so nothing was checked", file=sys.stderr)
        return 2
    if options.results:
        check = Check(device, options.tiny, options.results)
        check.run(stages[0], STAGES[stages[0]])
        return 0
    results = {"rows": [], "raw": {}, "failed": []}
    with StopSignal("stopping: the record is written first") as stop:
        for name in stages:
            for key, value in _in_process(name, options, stop).items():
                results[key] = results[key] | value if key == "raw" else results[key] + value
            if stop:
                break
        return _finish(options, device, results, 128 + stop.number if stop else 1)


def _finish(options: argparse.Namespace, device: torch.device, results: dict, failure: int) -> int:
    """Write the record and return the exit code, which is `failure` where a stage failed."""
    values = {"checks": records.table(["stage", "measure", "value", "passed"], results["rows"])}
    records.write(
        options.record,
        title="A card beside the CPU",
        seed=0,
        note=f"{_name(device)}, {'a tiny model' if options.tiny else 'Base'} with random weights, clips of noise. "
        f"FlashAttention: {results['raw'].get('flash', 'not run')}.",
        values=values,
        raw=results["raw"] | {"failed": results["failed"]},
    )
    if options.record:
        print(tables.markdown(values["checks"]))
    failed = results["failed"]
    print(f"failed: {'; '.join(failed)}" if failed else "every stage passed")
    return failure if failed else 0


def _in_process(name: str, options: argparse.Namespace, stop: StopSignal) -> dict:
    """Run a stage in a process of its own, and return its results, or what it had when its time or the run ended."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "results.json")
        command = [sys.executable, __file__, "--device", options.device, "--stages", name, "--results", str(file)]
        stage = subprocess.Popen(command + ["--tiny"] * options.tiny, start_new_session=True)
        deadline = time.monotonic() + BUDGETS[name]
        try:
            while (code := stage.poll()) is None and time.monotonic() < deadline and not stop.event.wait(0.1):
                pass
        finally:
            _stop(stage)
        results = {"rows": [], "raw": {}, "failed": []}
        if file.is_file():
            results = json.loads(file.read_text(encoding="utf-8"))
    if code != 0:
        end = f"ended with exit code {code}"
        if code is None:
            end = "was stopped by a signal" if stop else f"was stopped after its {BUDGETS[name]} s"
        print(f"{name:10}{end}")
        results["rows"].append([name, end, None, "no"])
        results["failed"].append(f"{name}: {end}")
    return results


def _stop(stage: subprocess.Popen) -> None:
    """End what is left of a stage's process and those that it has started."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(stage.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    else:
        stage.kill()
    with suppress(subprocess.TimeoutExpired):  # one that waits inside a card's driver cannot be ended
        stage.wait(10)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"The {device.type.upper()}"


if __name__ == "__main__":
    sys.exit(main())
