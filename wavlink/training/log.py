"""The log of a run: progress bar, `metrics.jsonl`, trackers and plots."""

import dataclasses
import gc
import json
import time

from wavlink.atomic_files import write_text
from wavlink.evaluation.embed_split import Embedded
from wavlink.evaluation.retrieval import DIRECTIONS
from wavlink.plots import draw_loss, draw_recall, draw_similarities
from wavlink.progress import Bar
from wavlink.training.memory import peak_memory
from wavlink.training.run_folder import Metrics, note_environment, note_seconds, on_disk


class Log:
    """A run's progress bar, `metrics.jsonl`, trackers and plots, on the main process alone."""

    def __init__(self, run):  # a `loop.Run`
        self.run = run
        self.active = run.accelerator.is_main_process
        self.metrics = Metrics(run.folder, run.step) if self.active else None
        self.bar = Bar(total=run.steps, initial=run.step, desc=run.recipe.name, disable=not self.active, unit="step")
        self.began, self.first = time.perf_counter(), run.step
        recipe = dataclasses.asdict(run.recipe)
        if self.active:
            write_text(run.folder / "recipe.json", json.dumps(recipe, indent=2) + "\n")
            facts = {"processes": run.accelerator.num_processes, "on_disk": on_disk(recipe)}
            note_environment(run.folder, step=run.step, **facts)
        if run.recipe.trackers:
            run.accelerator.init_trackers("wavlink", {name: str(value) for name, value in recipe.items()})

    def step(self, loss: float, scale: float, learning_rate: float) -> None:
        """Log an optimizer step."""
        run = self.run
        clips = (run.step - self.first) * run.feed.batch_size / (time.perf_counter() - self.began)
        self.bar.update()
        self.bar.set_postfix(
            loss=f"{loss:.3f}", scale=f"{scale:.1f}", lr=f"{learning_rate:.1e}", clips_s=f"{clips:.0f}"
        )
        values = {"loss": loss, "scale": scale, "learning_rate": learning_rate}
        run.accelerator.log({**values, "clips_per_second": clips}, step=run.step)
        if self.active:
            self.metrics.write(step=run.step, **values)

    def validation(self, scores: dict, embedded: Embedded) -> None:
        """Log a validation: a line of recall, `metrics.jsonl`, trackers and plots."""
        if not self.active:
            return
        Bar.write(f"step {self.run.step} of {self.run.steps}, validation: {recall_line(scores)}")
        self.metrics.write(step=self.run.step, validation=without_details(scores))
        flat = {
            f"{way}/{dim}/{name}": figure["value"]
            for way in ("text_to_audio", "audio_to_text")
            for dim, row in scores[way].items()
            for name, figure in row.items()
        }
        self.run.accelerator.log(flat, step=self.run.step)
        records = self.metrics.read()
        draw_loss(records, self.run.folder / "loss.png")
        draw_recall(records, self.run.folder / "recall.png")
        pairs = distinct_pairs(embedded)
        texts = [embedded.texts.index(embedded.captions[row][0]) for row in pairs]
        similarities = embedded.audio[pairs] @ embedded.text[texts].T
        draw_similarities(similarities.numpy(), [embedded.texts[i] for i in texts], self.run.folder / "similarity.png")
        gc.collect()  # figures are reference cycles that hold their pixels, which Python seldom collects by itself

    def note_seconds(self) -> None:
        """Write the time since the start, and the peak memory, into `environment.jsonl`."""
        if self.active:
            seconds = time.perf_counter() - self.began
            note_seconds(self.run.folder, self.run.step, seconds, peak_memory_mib=peak_memory())

    def end(self) -> None:
        """Close the log of a finished run."""
        self.note_seconds()
        self.bar.close()
        self.run.accelerator.end_training()


def distinct_pairs(embedded: Embedded) -> list[int]:
    """Choose at most 24 clips, evenly spread over the split, whose first captions differ."""
    first = {row[0]: index for index, row in reversed(list(enumerate(embedded.captions)))}
    rows = sorted(first.values())
    return rows[:: -(-len(rows) // 24)]


def without_details(scores: dict) -> dict:
    """Return the scores without those of each class, which would fill `metrics.jsonl`."""
    zero_shot = scores.get("zero_shot", {})
    short = {name: value for name, value in zero_shot.items() if name not in ("per_class", "confusion", "label_text")}
    return {**scores, "zero_shot": short} if short else scores


def recall_line(scores: dict) -> str:
    """Format R@10 of both directions at the largest and the smallest dim."""
    dims = sorted(scores["text_to_audio"], key=int)
    ends = list(dict.fromkeys([dims[-1], dims[0]]))
    parts = [
        f"{words} " + " / ".join(f"{100 * scores[way][dim]['R@10']['value']:.1f}" for dim in ends)
        for way, words in DIRECTIONS.items()
    ]
    return f"R@10 in % at {' / '.join(ends)} dims: {', '.join(parts)}"
