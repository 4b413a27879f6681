"""Run tasks of mteb, such as its audio benchmark MAEB, with a model: mteb's result folder, and a table.

    python benchmarks/maeb.py your-name/wavlink-base --name your-name/wavlink-base      # MAEB(v1), 30 tasks
    python benchmarks/maeb.py your-name/wavlink-base --benchmark "MAEB(v1, audio-only)"
    python benchmarks/maeb.py wavlink-tiny --tasks BeijingOpera VehicleSoundClustering
    python benchmarks/maeb.py wavlink-tiny --sounds FOLDER --record                     # tasks of an audiofolder

MODEL is what `Embedder` takes. The same command goes on after a kill: finished tasks are kept, and of a task with
several subsets the finished ones. Results of another revision of the data, and files that a kill left half written,
are made again. A task that cannot be run, for want of a network or of a package, is named with the reason; the exit
code is then 1.

`--sounds` runs a task of every class in MAEB on an audiofolder (see `maeb_sounds.py`), and compares mteb's figures
with those of `wavlink eval` where both exist.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

try:
    import mteb
except ModuleNotFoundError as missing:
    from wavlink.installing import install_hint

    raise SystemExit(install_hint(missing.name or "mteb", "maeb")) from missing
from mteb.abstasks import AbsTask
from mteb.cache import ResultCache
from mteb.models import ModelMeta

from processing.prompts import PROMPT
from wavlink import evaluate, register_mteb
from wavlink.evaluation.metrics import KS
from wavlink.evaluation.mteb_encoder import LONG_CLIPS, WavLinkEncoder
from wavlink.evaluation.retrieval import DIRECTIONS

try:
    from benchmarks import maeb_sounds, records, tables
except ModuleNotFoundError:  # run as a script
    import maeb_sounds
    import records
    import tables

BENCHMARK = "MAEB(v1)"
COMPARED = {"text_to_audio": "SoundsT2ARetrieval", "audio_to_text": "SoundsA2TRetrieval"}
ZERO_SHOT = "SoundsZeroshot"


@dataclass
class Done:
    """A task's main score, or why there is none; `scores` are those of its first split and subset."""

    task: AbsTask
    score: float | None = None
    scores: dict | None = None
    error: str = ""
    kept: bool = False  # from an earlier run
    seconds: float = 0.0


def run(encoder: WavLinkEncoder, task: AbsTask, cache: ResultCache) -> Done:
    """Run a task, or take its result from an earlier run."""
    finished, strategy = earlier(encoder, task, cache)
    start = time.monotonic()
    try:
        found = mteb.evaluate(
            encoder,
            task,
            cache=cache,
            overwrite_strategy=strategy,
            co2_tracker=False,
            show_progress_bar=False,
            encode_kwargs={"batch_size": 32, "show_progress_bar": sys.stderr.isatty()},
        )
    except Exception as error:  # of one task: the others go on
        return Done(task, error=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}")
    if not found.task_results:
        return Done(task, error="; ".join(error.exception for error in found.exceptions or ()) or "mteb gave none")
    result = found.task_results[0]
    scores = next(iter(result.scores.values()))[0]
    return Done(task, result.get_score(), scores, kept=finished, seconds=time.monotonic() - start)


def earlier(encoder: WavLinkEncoder, task: AbsTask, cache: ResultCache) -> tuple[bool, str]:
    """Whether a task is finished, and mteb's strategy for what an earlier run has left of it."""
    try:
        result = cache.load_task_result(task.metadata.name, encoder.mteb_model_meta)
    except ValueError:  # half written
        return False, "always"
    if result is None or result.dataset_revision != task.metadata.revision:
        return False, "always"
    return not result.get_missing_evaluations(task), "only-missing"


def chosen(options: argparse.Namespace) -> list[AbsTask]:
    """The tasks that the options name.

    Raises:
        ValueError: there is no such benchmark or task.
    """
    if options.sounds:
        tasks = maeb_sounds.sound_tasks(options.sounds, options.seed)
    else:
        try:
            tasks = list(mteb.get_benchmark(options.benchmark).tasks)
        except KeyError as error:
            raise ValueError(error.args[0]) from error
    if not options.tasks:
        return tasks
    by_name = {task.metadata.name: task for task in tasks}
    try:
        return [by_name[name] if name in by_name else mteb.get_task(name) for name in options.tasks]
    except KeyError as error:
        raise ValueError(error.args[0]) from error


def summary(runs: Sequence[Done]) -> dict:
    """A row a task that has a score."""
    scored = [(done.task.metadata, done.score) for done in runs if done.score is not None]
    rows = [[about.name, about.type, about.main_score, records.number(100 * score, 1)] for about, score in scored]
    return records.table(["task", "type", "measure", "score, %"], rows)


def agreement(encoder: WavLinkEncoder, runs: Sequence[Done], folder: str) -> dict:
    """What mteb and `wavlink eval` say of the same clips and texts; {} if mteb says nothing of these."""
    scores = {done.task.metadata.name: done.scores for done in runs if done.scores}
    if not scores.keys() & {*COMPARED.values(), ZERO_SHOT}:
        return {}
    ours, dim = evaluate(encoder.model, folder, prompts=PROMPT, choices=0), str(encoder.embed_dim)
    figures = {
        f"{DIRECTIONS[way]} R@{k}": (scores[name][f"hit_rate_at_{k}"], ours[way][dim][f"R@{k}"])
        for way, name in COMPARED.items()
        if name in scores
        for k in KS
    }
    if found := scores.get(ZERO_SHOT):
        figures["zero-shot accuracy"] = found["accuracy"], ours["zero_shot"][dim]["accuracy"]
    rows = [[name, records.number(100 * mteb_s, 1), records.percent(own)] for name, (mteb_s, own) in figures.items()]
    return records.table(["", "mteb, %", "`wavlink eval`, %"], rows)


def report(runs: Sequence[Done], values: dict) -> str:
    """The tables in Markdown, and what has no score."""
    lines = [tables.markdown(table) + "\n" for table in values.values()]
    kept = sum(done.kept for done in runs)
    seconds = sum(done.seconds for done in runs)
    scored = sum(done.score is not None for done in runs)
    lines.append(f"{scored} of {len(runs)} tasks have a score, {kept} of them from an earlier run; {seconds:.0f} s")
    lines += [f"no score: {done.task.metadata.name} ({done.error})" for done in runs if done.score is None]
    return "\n".join(lines)


def write(options: argparse.Namespace, meta: ModelMeta, runs: Sequence[Done], values: dict) -> None:
    """Write the record, if one is wanted."""
    errors = {done.task.metadata.name: done.error for done in runs if done.score is None}
    kept = [done.task.metadata.name for done in runs if done.kept]
    note = {"windows": "Clips over 30 s in windows.", "first": "The first 30 s of clips."}[options.long_clips]
    note += f" No score: {', '.join(errors)}." if errors else ""
    note += f" Scored by an earlier run: {', '.join(kept)}." if kept else ""
    records.write(
        options.record,
        title=f"{meta.name} on tasks of mteb",
        seed=options.seed,
        note=note,
        values=values,
        raw={"revision": meta.revision, "data": {x.task.metadata.name: x.task.metadata.revision for x in runs}},
        packages=["mteb"],
    )


def parsed(arguments: list[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("model", metavar="MODEL")
    add(
        "--name", default="", help="of the model in mteb, owner/name (default: the Hub id, wavlink/NAME, local/FOLDER)"
    )
    add("--revision", help="of a Hub id")
    add("--benchmark", default=BENCHMARK, help="of mteb (%(default)s)")
    add("--tasks", nargs="+", metavar="TASK", help="some tasks of it, or any others of mteb, by name")
    add("--sounds", default="", metavar="FOLDER", help="the tasks of an audiofolder in place of a benchmark")
    add("--output", default="maeb", type=Path, metavar="FOLDER", help="for mteb's result folder (%(default)s)")
    add("--dim", type=int, help="one of the nested dims (default: all dims)")
    add("--long_clips", choices=LONG_CLIPS, default="windows", help="what is taken of clips over the model's limit")
    add("--device", help="default: a GPU where there is one")
    add("--seed", type=int, default=0, help="of the pairs and candidates of --sounds (%(default)s)")
    records.add_option(parser, "maeb")
    return parser, parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    parser, options = parsed(arguments)
    try:
        tasks = chosen(options)
        meta = register_mteb(options.model, options.name, revision=options.revision)
        encoder = meta.load_model(options.device, embed_dim=options.dim, long_clips=options.long_clips)
    except ValueError as error:
        parser.error(str(error))
    encoder.kept, cache = {}, ResultCache(options.output)  # tasks share sounds
    runs = [run(encoder, task, cache) for task in tasks]
    values = {"tasks": summary(runs)} if any(done.scores for done in runs) else {}
    if options.sounds and (compared := agreement(encoder, runs, options.sounds)):
        values["agreement"] = compared
    print(report(runs, values))
    if values:
        write(options, meta, runs, values)
    return int(any(done.error for done in runs))


if __name__ == "__main__":
    sys.exit(main())
