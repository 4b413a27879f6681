"""The paper's design claims at small scale: each choice beside its alternative, several seeds, its own learning rate.

    python benchmarks/text_towers.py SOUNDS --teacher ALL_MINILM_L6_V2 --clip_tokenizer CLIP_TOKENIZER --out TOWERS
    python benchmarks/claims.py SOUNDS --towers TOWERS --audio_model WHISPER_TINY_EN [--record]
    python benchmarks/claims.py SOUNDS --towers TOWERS --audio_model WHISPER_TINY_EN --training --record options.json

An arm is the base recipe with the difference that `ARMS` states, and is compared with the arm that it names; with
`--training` it has an option of training that the paper does not speak of. Its learning rate is searched first, under
the first seed, by R@10 on the validation split: three rates, and further ones while the best lies at an end. Then it
is trained under every seed at that rate, and each model is scored once on the test split. Both arms of a pair take the
same clips in the same order, and as many steps.

A finished run is one line of `--results`, and `--record` takes all lines into the record. The same command goes on
from both: it trains what neither holds. `--stop_after 0 --record` trains nothing more and records what there is.
"""

import argparse
import gc
import hashlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import claims_report
import records
import tables
from claims_arms import ALL, ARMS, SPLITS, TRAINING, next_rate, recipe, short_clips

from processing.datasets.load import caption_columns, load_split
from wavlink.evaluation.embed_split import Embedded, embed_dataset
from wavlink.training.loop import Run
from wavlink.training.run_folder import commit_of


class Runs:
    """All finished runs, those of the record and those of the results file, to which new ones are added.

    Attributes:
        common: what all of them have in common: the `settings`, and the `answers` of the test split as
            `claims_report.from_text` reads them.

    Raises:
        ValueError: runs of another budget, of other data, or of arms that have changed since.
    """

    def __init__(self, results: Path, record: Path | None):
        self.results = results
        known = records.read(record)["raw"] if record and record.exists() else {"common": {}, "runs": []}
        lines = results.read_text(encoding="utf-8").splitlines(keepends=True) if results.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
        self.common, self.runs = {}, {}
        for common in (known["common"], *(row for row in rows if "arm" not in row)):
            self._agree(common)
        for row in (*known["runs"], *(row for row in rows if "arm" in row)):
            if row["arm"] not in ALL or row["differs"] != _difference(row["arm"]):
                raise ValueError(f"{row['arm']} has changed since its runs: give another --results and --record")
            self.runs[_key(row)] = row

    def _agree(self, common: dict) -> None:
        for name, value in common.items():
            if self.common.setdefault(name, value) != value:
                raise ValueError(f"finished runs have other {name}: give another --results and another --record")

    def share(self, **common) -> None:
        """Note what all runs have in common; refuse what finished ones do not have."""
        common = json.loads(json.dumps(common))
        new = any(name not in self.common for name in common)
        self._agree(common)
        if new or not self.results.exists():
            self._write(common)

    def add(self, **row) -> None:
        """Keep a finished run."""
        row |= {"commit": commit_of(Path(__file__)), "differs": _difference(row["arm"])}
        self._write(row)
        self.runs[_key(row)] = row

    def searched(self, arm: str) -> dict[float, float]:
        """Learning rate -> R@10 on the validation split."""
        return {
            row["rate"]: row["validation"] for row in self.runs.values() if row["arm"] == arm and "test" not in row
        }

    def tested(self, arm: str) -> dict[int, dict]:
        """Seed -> the run that was scored on the test split."""
        return {row["seed"]: row for row in self.runs.values() if row["arm"] == arm and "test" in row}

    def _write(self, row: dict) -> None:
        self.results.parent.mkdir(parents=True, exist_ok=True)
        with open(self.results, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _key(row: dict) -> tuple:
    return row["arm"], row["seed"], row["rate"], "test" in row


def _difference(arm: str) -> dict:
    """What of an arm its runs depend on, as it is read from JSON."""
    return json.loads(json.dumps({"changes": ALL[arm].changes, "stages": ALL[arm].stages}))


class Bench:
    """Trains and scores arms on one folder of sounds."""

    def __init__(self, options: argparse.Namespace, runs: Runs):
        self.options, self.runs = options, runs
        self.test = load_split(str(options.clips), "test")
        self.best: tuple[str, float, Run | None] | None = None  # of a search, kept to be scored on the test split

    def advance(self, arm: str) -> bool:
        """Do an arm's next run; return whether there was one left."""
        tried, seeds = self.runs.searched(arm), self.options.seeds
        if (rate := next_rate(tried, ALL[arm].rate)) is not None:
            self.search(arm, rate, max(tried.values(), default=-1.0))
            return True
        left = [seed for seed in seeds if seed not in self.runs.tested(arm)]
        if left:
            self.score(arm, max(tried, key=tried.get), left[0])
        return bool(left)

    def search(self, arm: str, rate: float, best: float) -> None:
        """Train at one learning rate and score on the validation split."""
        seed = self.options.seeds[0]
        run, seconds = self.trained(arm, rate, seed)
        value = 0.0
        if run is not None:
            value = claims_report.mean_recall(self.embed(run, run.validation_set, run.columns))
        if value > best:
            self.best = arm, rate, run
        print(f"{arm} at {rate:g}: R@10 {100 * value:.1f} on validation, {seconds:.0f} s", flush=True)
        self.runs.add(arm=arm, seed=seed, rate=rate, validation=value, seconds=seconds)

    def score(self, arm: str, rate: float, seed: int) -> None:
        """Score one seed on the test split; the first one's model is that of the search if it is still here."""
        run, seconds = None, 0.0
        if self.best and self.best[:2] == (arm, rate) and seed == self.options.seeds[0]:
            run = self.best[2]
        self.best = None
        if run is None:
            run, seconds = self.trained(arm, rate, seed)
        if run is None:
            raise ValueError(f"{arm} does not learn at {rate:g} under seed {seed}: its loss is not finite")
        embedded = self.embed(run, self.test, caption_columns(self.test))
        found = claims_report.hits(embedded)
        print(f"{arm} at {rate:g}, seed {seed}: {claims_report.line(found)}, {seconds:.0f} s", flush=True)
        self.runs.share(answers=claims_report.as_text(embedded.correspondence))
        self.runs.add(arm=arm, seed=seed, rate=rate, test=claims_report.packed(found), seconds=seconds)

    def trained(self, arm: str, rate: float, seed: int) -> tuple[Run | None, float]:
        """Train an arm; return the run of its last stage, None if a loss was not finite, and the seconds."""
        began, weights, run = time.perf_counter(), None, None
        for stage in ALL[arm].stages:
            run = Run(recipe(arm, rate, seed, self.options, stage))
            model = run.accelerator.unwrap_model(run.model)
            if weights is not None:
                model.load_state_dict(weights)
            model.train()
            try:
                for batch in run.feed.batches(run.processor, 0):
                    run.learn(batch)
                    if run.aging_bank is not None and run.feed.is_epoch_end(run.step) and run.step < run.steps:
                        run.aging_bank.refresh()
                    if run.step == run.steps:
                        break
            except ValueError as error:
                if not str(error).startswith("the loss is"):
                    raise
                return None, round(time.perf_counter() - began, 1)
            weights = model.state_dict()
        gc.collect()  # a run and its Accelerator hold each other
        return run, round(time.perf_counter() - began, 1)

    def embed(self, run: Run, split, columns: Sequence[str]) -> Embedded:
        """Embed a split whole: the arms are compared clip by clip."""
        model = run.accelerator.unwrap_model(run.model)
        with run.averaged():
            embedded = embed_dataset(model, run.processor, split, columns, progress=False)
        if len(embedded.rows) < len(split):
            raise ValueError(f"{len(split) - len(embedded.rows)} clips cannot be read: the arms need the same clips")
        return embedded


def settings(options: argparse.Namespace) -> dict:
    """What two runs must have in common to be compared."""
    rows = b"".join((options.clips / split / "metadata.csv").read_bytes() for split in SPLITS)
    names = ("steps", "batch_size", "projection_dim", "max_seconds", "validation_clips", "test_clips")
    common = {name: getattr(options, name) for name in names}
    return {**common, "sounds": hashlib.blake2b(rows, digest_size=8).hexdigest()}


def record(options: argparse.Namespace, runs: Runs) -> None:
    """Print the table, and write the record with all runs, from which the same command goes on.

    Raises:
        ValueError: no run has been scored.
    """
    if "answers" not in runs.common:
        raise ValueError(
            f"no run has been scored: {len(runs.runs)} of the search are finished, give a later --stop_after"
        )
    answers = claims_report.from_text(runs.common["answers"])
    scored = {
        arm: {seed: claims_report.unpacked(row["test"], answers) for seed, row in sorted(runs.tested(arm).items())}
        for arm in ALL
        if runs.tested(arm)
    }
    found = claims_report.pairs(ALL, scored, answers)
    table = claims_report.as_table(ALL, runs, scored, found)
    print(tables.markdown(table))
    by_name = {f"{ALL[arm].words} against {ALL[arm].instead_of}": gaps for arm, gaps in found.items()}
    missing = [
        f"{ALL[arm].words} ({len(scored.get(arm, ()))} of {len(options.seeds)} seeds)"
        for arm in _arms(options.training)
        if len(scored.get(arm, ())) < len(options.seeds)
    ]
    note = claims_report.note({arm: ALL[arm] for arm in scored}, found, answers, runs.common["settings"])
    note += f" Not finished: {', '.join(missing)}." if missing else ""
    records.write(
        options.record,
        title=("Options of training" if options.training else "The paper's design choices") + " at small scale",
        seed=options.seeds[0],
        note=note,
        values={"arms": table},
        raw={"common": runs.common, "pairs": by_name, "runs": list(runs.runs.values())},
    )


def _arms(training: bool) -> list[str]:
    return ["base", *TRAINING] if training else [*ARMS]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("sounds", type=records.folder, help="a captioned audiofolder")
    add("--towers", type=Path, help="the folder that text_towers.py has written")
    add("--audio_model", help="a Whisper, such as openai/whisper-tiny.en")
    add("--projection_dim", type=int, default=256, help="that of the CLIP tower (%(default)s)")
    add("--arms", nargs="+", choices=ALL, metavar="ARM", help=f"of {', '.join(ALL)} (default: the paper's)")
    add("--training", action="store_true", help="base and the arms of options of training")
    add("--seeds", nargs="+", type=int, default=[0, 1, 2])
    add("--steps", type=int, default=60, help="(%(default)s)")
    add("--batch_size", type=int, default=64, help="(%(default)s)")
    add("--max_seconds", type=float, default=2.0, help="longer clips are left out (%(default)s)")
    add("--validation_clips", type=int, default=300, help="(%(default)s)")
    add("--test_clips", type=int, default=700, help="(%(default)s)")
    add("--stop_after", type=float, default=math.inf, metavar="MINUTES", help="begin no run later; 0: train nothing")
    add("--work", type=Path, default=Path("runs/claims"), help="folder for links and towers (%(default)s)")
    add("--results", type=Path, help="finished runs, a line each (WORK/results.jsonl)")
    records.add_option(parser, "claims")
    options = parser.parse_args(arguments)
    options.arms = options.arms or _arms(options.training)
    until = time.monotonic() + 60 * options.stop_after
    runs = Runs(options.results or options.work / "results.jsonl", options.record)
    if options.stop_after:
        most = {"validation": options.validation_clips, "test": options.test_clips}
        options.clips = options.work / "-".join(map(str, ("sounds", options.max_seconds, *most.values())))
        short_clips(options.sounds, options.clips, options.max_seconds, most)
        runs.share(settings=settings(options))
        bench = Bench(options, runs)
        for arm in options.arms:
            while time.monotonic() < until and bench.advance(arm):
                pass
    record(options, runs)


if __name__ == "__main__":
    main()
