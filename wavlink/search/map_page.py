"""HTML page of a map of sounds: points coloured by label, and a player below. It loads nothing but sounds.

Names and labels are untrusted: the page holds them as JSON that plotly escapes, and shows them as text.
"""

from collections import Counter
from collections.abc import Sequence
from html import escape

import numpy as np

from wavlink.sanitize import clean

SHOWN = 20  # labels with a distinct look: ten colours times two shapes
_COLORS = "#4477aa #ee6677 #228833 #ccbb44 #66ccee #aa3377 #ee8866 #222255 #44bb99 #997700".split()
_SHAPES = ("circle", "diamond")
_REST = "#c8c8c8"
_BUTTONS = ["pan2d", "zoom2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]
_WEBGL = 3_000  # sounds from which on SVG is slow

# The player is shown below the plot but comes first in the page: plotly runs `_PLAY` before the rest is parsed.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0; height: 100vh; display: flex; flex-direction: column; }}
body {{ font: 15px/1.4 system-ui, sans-serif; color: #222; }}
header, footer {{ padding: 8px 16px; display: flex; gap: 4px 16px; align-items: center; flex-wrap: wrap; }}
header small {{ color: #666; }}
h1 {{ font-size: 18px; margin: 0; }}
main {{ flex: 1; min-height: 0; }}
main > div {{ height: 100%; }}
footer {{ order: 1; border-top: 1px solid #ddd; min-height: 56px; }}
#sound {{ overflow-wrap: anywhere; }}
</style>
</head>
<body>
<header>
<h1>{title}</h1>
<small>Neighbours sound alike. Click a point to play it, a label to hide it; scroll to zoom. {guessed}</small>
</header>
<footer><audio id="player" controls></audio><span id="sound" aria-live="polite">No sound chosen yet</span></footer>
<main>{plot}</main>
</body>
</html>
"""

_PLAY = """
const plot = document.getElementById("map");
const player = document.getElementById("player");
const sound = document.getElementById("sound");
let chosen = "";
player.addEventListener("error", () => {
  sound.textContent = chosen + ": cannot be played; its file has moved, or this browser does not know its format";
});
plot.on("plotly_click", ({points: [point]}) => {
  const [name, label, link] = point.customdata ?? [];
  if (name === undefined) return;  // the ring around the chosen point
  Plotly.restyle(plot, {x: [[point.x]], y: [[point.y]]}, [plot.data.length - 1]);
  chosen = name + " (" + label + ")";
  sound.textContent = link ? chosen : chosen + ": its file is not where the index says";
  player.pause();
  if (link) player.src = link; else player.removeAttribute("src");
  if (link) player.play().catch(() => {});  // the error event reports the reason
});
"""


def page(
    title: str,
    positions: np.ndarray,
    names: Sequence[str],
    labels: Sequence[str],
    links: Sequence[str],
    guessed: str = "",
) -> str:
    """Return the HTML.

    Args:
        title: one line.
        positions: `[N, 2]`.
        names, labels, links: N of each; the link is a URL, "" where there is no sound to play.
        guessed: a sentence on labels that the model has guessed.
    """
    import plotly.graph_objects as go
    import plotly.io

    plot = plotly.io.to_html(
        go.Figure(_traces(positions, names, labels, links), _look()),
        config={"displaylogo": False, "scrollZoom": True, "responsive": True, "modeBarButtons": [_BUTTONS]},
        include_plotlyjs=True,
        post_script=_PLAY,
        full_html=False,
        default_height="100%",
        div_id="map",  # random by default
    )
    return _PAGE.format(title=escape(f"{len(labels)} sounds of {title}"), guessed=escape(guessed), plot=plot)


def _traces(positions: np.ndarray, names: Sequence[str], labels: Sequence[str], links: Sequence[str]) -> list:
    """Return plotly's traces: one per label, one of the rare labels, and the ring around the chosen point."""
    import plotly.graph_objects as go

    counts = Counter(labels)
    shown = [label for label, _ in counts.most_common(SHOWN)]
    groups = [(label, [n for n, other in enumerate(labels) if other == label]) for label in shown]
    if rest := [n for n, label in enumerate(labels) if label not in shown]:
        groups.append((f"{len(counts) - len(shown)} other labels", rest))
    kind = go.Scattergl if len(labels) > _WEBGL else go.Scatter
    rows = [(name, label, link) for name, label, link in zip(names, labels, links, strict=True)]
    traces = [
        kind(
            name=_escaped(f"{clean(label, 28)} ({len(members)})"),
            x=positions[members, 0],
            y=positions[members, 1],
            customdata=[rows[n] for n in members],
            text=[f"<b>{_escaped(clean(names[n], 100))}</b><br>{_escaped(labels[n])}" for n in members],
            hovertemplate="%{text}<extra></extra>",
            mode="markers",
            marker=_marker(number, len(labels), number == len(shown)),
            legendrank=number + 1,
            zorder=0 if number == len(shown) else 1,
        )
        for number, (label, members) in enumerate(groups)
    ]
    ring = {"symbol": "circle-open", "size": 18, "color": "#000", "line": {"width": 2}}
    chosen = kind(x=[None], y=[None], mode="markers", marker=ring, hoverinfo="skip", showlegend=False, zorder=2)
    return [*traces, chosen]


def _escaped(text: str) -> str:
    """Escape a text for plotly, which interprets some tags and entities."""
    return escape(text, quote=False)


def _marker(number: int, count: int, rest: bool) -> dict:
    size = float(np.clip(200 / max(count, 1) ** 0.5, 4, 9))
    return {
        "color": _REST if rest else _COLORS[number % len(_COLORS)],
        "symbol": "circle" if rest else _SHAPES[number // len(_COLORS)],
        "size": size,
        "opacity": 0.6 if rest else 0.9,
        "line": {"width": 0.5, "color": "white"},
    }


def _look() -> dict:
    axis = {"showgrid": False, "zeroline": False, "showticklabels": False}
    return {
        "template": "plotly_white",
        "xaxis": axis,
        "yaxis": axis | {"scaleanchor": "x"},
        "dragmode": "pan",
        "margin": {"l": 8, "r": 8, "t": 36, "b": 8},  # the buttons are above the legend
        "legend": {"title": {"text": "label (sounds)"}, "itemsizing": "constant"},
        "hoverlabel": {"align": "left"},
    }
