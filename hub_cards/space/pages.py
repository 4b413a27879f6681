"""Results as HTML: bars, waveforms, players and plots, all inside the page, so that no file is left behind.

Text from a visitor, a file or a model is escaped.
"""

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import soundfile

from wavlink.defaults import STORAGES
from wavlink.long_recordings import Span, clock
from wavlink.plots import draw_timeline
from wavlink.probability import NO_MATCH
from wavlink.temporary_paths import temporary_folder
from wavlink.vocabulary import describe

from .answers import ClassifiedSound, Demo, SearchedRecording, Sentence, part_of

if TYPE_CHECKING:
    from wavlink.search.index import Hit

_BARS = 72  # of a waveform
_MATCHES = 0.5  # the probability below which the closest sound is said not to match
_BYTES = {"fp32": 4, "fp16": 2}  # of a number
_PLAYED = 30.0  # seconds of a player at most, as its sound is in the page


def _clock(seconds: float) -> str:
    """Format a time: `02:03.4`, with hours if there are any."""
    return clock(seconds).removeprefix("0:")


def header() -> str:
    """Return the headline: what a visitor can do."""
    text = "Name a sound, find sounds by describing them, or locate one in a recording."
    return f'<header class="wl-head"><h1>Find and name sounds with words</h1><p>{text}</p></header>'


def facts(demo: Demo) -> str:
    """Return the table of what was loaded."""
    embedder = demo.embedder
    revision = embedder.revision if embedder.revision.startswith("sha256:") else embedder.revision[:12]
    properties = {
        "Model": _name(embedder.name),
        "Revision": revision,
        "Dims": f"{embedder.dims}, nested: {', '.join(map(str, demo.dims))}",
        "Trained on": demo.trained,
        "Index": _index(demo),
    }
    rows = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in properties.items())
    text = "WavLink turns a sound and a sentence into one short vector each; how alike they are is one inner product."
    return f'<div class="wl-facts"><p>{text}</p><dl>{rows}</dl></div>'


def ticks(demo: Demo) -> str:
    """Return the nested dims, as labels below the positions of the slider."""
    return f'<div class="wl-ticks" aria-hidden="true">{"".join(f"<span>{dim}</span>" for dim in demo.dims)}</div>'


def _name(model: str) -> str:
    """Return the last two names of a folder, so that no other path is shown; a Hub id as it is."""
    return "/".join(Path(model).resolve().parts[-2:]) if os.path.isdir(model) else model


def _index(demo: Demo) -> str:
    if not demo.indexes:
        return "none, so sounds cannot be searched"
    kept, index = max(demo.indexes.items())
    return f"{len(index)} windows of sound, {kept} dims as {index.manifest.storage}"


def limits(demo: Demo) -> str:
    """Return the limits of an upload."""
    return f"Drop a file of up to {demo.limits.megabytes:g} MB and {_length(demo.limits.seconds)}, or record one."


def _length(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds > 120 else f"{seconds:g} seconds"


def costs(demo: Demo, dim: int) -> str:
    """Return the table of bytes per vector, for `dim` and for all dims, in each number format."""
    most, cells = demo.dims[-1], []
    for storage in STORAGES:
        size, full = dim * _BYTES[storage], most * _BYTES[storage]
        width = 100 * size / (most * _BYTES["fp32"])
        cells.append(
            f'<tr><th scope="row">{storage}</th><td>{size}</td><td>{full}</td>'
            f'<td class="wl-track" aria-hidden="true"><span class="wl-bar" style="width:{width:.1f}%"></span></td>'
            "</tr>"
        )
    columns = ("storage", f"{dim} dims", f"all {most}")
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    caption = f"<caption>Bytes a vector: {dim} of {most} dims</caption>"
    head = f"{caption}<thead><tr>{head}<td></td></tr></thead>"
    return f'<table class="wl-costs">{head}<tbody>{"".join(cells)}</tbody></table>'


def unknown(answer: ClassifiedSound | Sentence | SearchedRecording) -> str:
    """Return a note that names the words that the model's vocabulary lacks, or ""."""
    if not answer.unknown:
        return ""
    return f'<p class="wl-note" role="status">This model {escape(describe(answer.unknown))}.</p>'


def labels(demo: Demo, sound: ClassifiedSound, dim: int) -> str:
    """Return the scores as bars, highest first, with a mark at each score with all dims."""
    most = demo.dims[-1]
    (cosines, shares), (whole, marks) = sound.at(dim), sound.at(most)
    order, rows, fit = np.argsort(-shares, kind="stable"), [], sound.calibrations.get(dim)
    for label in order:
        match = f", match {_percent(float(fit.probability(cosines[label])))}" if fit else ""
        change = "" if dim == most else f", {_signed(cosines[label] - whole[label])} against all {most} dims"
        rows.append(
            f'<li><span class="wl-label">{escape(sound.labels[label])}</span>'
            f'<span class="wl-value">{100 * shares[label]:.1f} %</span>'
            f'<span class="wl-track" aria-hidden="true"><span class="wl-bar" style="width:{100 * shares[label]:.2f}%">'
            f'</span><span class="wl-mark" style="left:{100 * marks[label]:.2f}%"></span></span>'
            f'<span class="wl-note">cosine {cosines[label]:.3f}{match}{change}</span></li>'
        )
    same = "the same label is first" if order[0] == np.argmax(marks) else "another label was first"
    moved = f"with all {most} dims {same}, and cosines differ by at most {np.abs(cosines - whole).max():.3f}"
    read = "”, “".join(prompt.replace("{}", "(label)") for prompt in sound.prompts)
    notes = [f"Each label is read as “{read}”. Shares add up to 100 % of these labels alone"]
    if fit:
        notes.append(f"a match is the probability that the label fits, where {_percent(fit.prior)} of all sounds do")
    notes += [moved] if dim != most else []
    return f'<ol class="wl-bars">{"".join(rows)}</ol><p class="wl-text">{escape("; ".join(notes))}.</p>'


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def sounds(demo: Demo, query: Sentence, dim: int) -> str:
    """Return the closest sounds with their waveforms and players, and whether all dims find the same."""
    hits, whole = demo.closest(query, dim)
    kept, most = demo.kept(dim), max(demo.indexes)
    ranks = {hit.path: rank for rank, hit in enumerate(whole, 1)}
    rows = [_hit(demo, number, hit, ranks.get(hit.path), kept == most) for number, hit in enumerate(hits, 1)]
    same = sum(hit.path in ranks for hit in hits)
    note = f"Compared at {kept} of the index's {most} dims"
    note += "" if kept == most else f"; {same} of these {len(hits)} sounds are also the closest with all of them"
    if hits and all(hit.probability is not None and hit.probability < _MATCHES for hit in hits):
        note += f"; {NO_MATCH.format('index')} well"
    title = f'<p class="wl-text">Closest to “{escape(query.text)}”. {escape(note)}.</p>'
    return f'{title}<ol class="wl-hits">{"".join(rows)}</ol>'


def _hit(demo: Demo, number: int, hit: "Hit", rank: int | None, whole: bool) -> str:
    rate = demo.embedder.sampling_rate
    clip = part_of(hit.file, hit.start, min(hit.end, hit.start + _PLAYED), rate) if hit.file else None
    name = os.path.splitext(hit.path)[0]
    before = "" if whole else f", with all dims {f'number {rank}' if rank else 'not among them'}"
    note = f"{_clock(hit.start)} to {_clock(hit.end)}{before}{_match(hit)}"
    player = '<p class="wl-note">The sound itself is not here.</p>' if clip is None else _player(clip, rate, hit.path)
    return (
        f'<li><span class="wl-rank">{number}</span><div><span class="wl-label">{escape(name)}</span>'
        f'<span class="wl-value">{hit.score:.3f}</span><span class="wl-note">{escape(note)}</span>{player}</div></li>'
    )


def _match(hit: "Hit") -> str:
    """Return a hit's probability, in words that say what it is from."""
    words = {"model": "match", "index": "stands out from the index"}
    return f", {words[hit.calibration]} {_percent(hit.probability)}" if hit.calibration else ""


def _percent(probability: float) -> str:
    return f"{100 * probability:.3g} %" if probability < 0.01 else f"{100 * probability:.0f} %"


def _player(clip: np.ndarray, rate: int, name: str) -> str:
    """Return a waveform and a lossless player of a clip `[samples]` at the model's rate."""
    file = io.BytesIO()
    soundfile.write(file, clip, rate, format="FLAC", subtype="PCM_16")
    source = base64.b64encode(file.getvalue()).decode()
    return (
        f'{_waveform(clip, f"waveform of {name}, {len(clip) / rate:.1f} s")}<audio controls preload="metadata" '
        f'aria-label="{escape(f"play {name}")}" src="data:audio/flac;base64,{source}"></audio>'
    )


def _waveform(clip: np.ndarray, words: str) -> str:
    parts = np.array_split(np.abs(clip), min(_BARS, len(clip)))
    peaks = np.array([part.max() for part in parts])
    heights = 2 + 46 * peaks / max(peaks.max(), 1e-9)
    bars = "".join(f"M{5 * bar + 2.5:g} {25 - height / 2:.1f}v{height:.1f}" for bar, height in enumerate(heights))
    box = f'viewBox="0 0 {5 * len(heights)} 50" preserveAspectRatio="none"'
    return f'<svg class="wl-wave" role="img" aria-label="{escape(words)}" {box}><path d="{bars}"/></svg>'


def spans(demo: Demo, searched: SearchedRecording, dim: int) -> str:
    """Return a recording's timeline for a query, with players of the spans that stand out, or else of the closest."""
    edges, scores, best = searched.at(dim)
    least, most, query = searched.min_scores[dim], demo.dims[-1], searched.query.text
    marked = [span for span in best if span.score >= least]
    if marked:
        note = f"“{query}” stands out in {len(marked)} {'place' if len(marked) == 1 else 'places'}"
    else:
        note = f"Nothing stands out for “{query}”: the closest is below, but its score is under {least:.2f}"
    note += f". The recording has {_clock(searched.recording.duration)}, compared in windows of "
    note += f"{searched.recording.window:g} s, one every {searched.recording.hop:g} s"
    if dim != most:
        whole = searched.at(most)[1]
        note += f". Against all {most} dims the curve differs by at most {np.abs(scores - whole).max():.3f}"
        note += ", its highest place is " + ("the same" if scores.argmax() == whole.argmax() else "another")
    rows = [_span(demo, searched.path, number, span) for number, span in enumerate(marked or best[:1], 1)]
    plot = _timeline(searched, edges, scores, marked, least)
    return f'<p class="wl-text">{escape(note)}.</p>{plot}<ol class="wl-hits">{"".join(rows)}</ol>'


def _span(demo: Demo, path: str, number: int, span: Span) -> str:
    when, rate = f"{_clock(span.start)} to {_clock(span.end)}", demo.embedder.sampling_rate
    clip = part_of(path, span.start, min(span.end, span.start + _PLAYED), rate)
    match = "" if span.probability is None else f'<span class="wl-note">match {_percent(span.probability)}</span>'
    player = '<p class="wl-note">This part cannot be played.</p>' if clip is None else _player(clip, rate, when)
    return (
        f'<li><span class="wl-rank">{number}</span><div><span class="wl-label">{when}</span>'
        f'<span class="wl-value">{span.score:.3f}</span>{match}{player}</div></li>'
    )


def _timeline(
    searched: SearchedRecording, edges: np.ndarray, scores: np.ndarray, marked: Sequence[Span], least: float
) -> str:
    """Draw the timeline twice, for wide and for narrow windows."""
    duration, drawn = searched.recording.duration, {}
    curves = {searched.query.text: (edges, scores, [(span.start, span.end) for span in marked])}
    with temporary_folder("wavlink-space-") as folder:
        for name, size in (("wide", (8, 4)), ("narrow", (4.2, 4))):
            path = folder / f"{name}.png"
            draw_timeline(searched.peaks, duration, curves, path, size, least)
            drawn[name] = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    best = f"; best from {_clock(marked[0].start)} to {_clock(marked[0].end)}" if marked else "; nothing stands out"
    words = f"loudness of the recording, and below it how much each step is like “{searched.query.text}”{best}"
    return (
        f'<picture class="wl-timeline"><source media="(max-width: 640px)" srcset="{drawn["narrow"]}">'
        f'<img src="{drawn["wide"]}" alt="{escape(words)}"></picture>'
    )


WAITING = {
    "name": "Choose, drop or record a sound, type what it could be, and press “Name it”.",
    "find": "Type a sentence, press “Find sounds”, and listen to those most like it.",
    "listen": "Choose, drop or record a recording, type what to look for, and press “Look for it”.",
}


def waiting(name: str) -> str:
    """Return the text in place of a result that is not there yet."""
    return f'<p class="wl-waiting">{WAITING[name]}</p>'


def failure(text: str) -> str:
    """Return an error for the visitor."""
    return f'<p class="wl-failure" role="alert">{escape(text)}</p>'
