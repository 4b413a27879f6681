"""A demo of a WavLink in the browser: name a sound, find sounds by a sentence, locate a sound in a recording.

    wavlink space --model runs/quickstart/best --index synthetic
    wavlink space --model your-name/wavlink-base --index INDEX --port 7860
    wavlink space --model your-name/wavlink-base --static --out FOLDER

`wavlink push MODEL USER/NAME --space [--index INDEX]` makes a Space of it on the Hub.
"""

import argparse
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from hub_cards.space import pages, samples
from hub_cards.space.answers import Demo, Limits, trained_on
from wavlink import bundled_models
from wavlink.console import run_command, signals_as_interrupts, stdout_for
from wavlink.embedder import Embedder
from wavlink.options import publishing as of
from wavlink.parsing import main_of
from wavlink.samples import write_real_samples
from wavlink.sanitize import clean
from wavlink.temporary_paths import temporary_folder

STYLE = Path(__file__).with_name("style.css")
WAITING = 32  # visitors at once; others are refused
_KEPT = 900  # seconds that an uploaded sound and a result stay available
_SWEPT = 60  # seconds between two removals of older ones
# Text for screen readers when a result arrives, which gradio's translations lack.
_ANNOUNCED = {"common.complete": "The answer is ready.", "common.error": "Something went wrong."}
# Screen readers read the dims, not the position of the slider.
_READ_DIMS = """() => {
    const say = () => document.querySelectorAll("#dims input[type=range]").forEach(
        x => x.setAttribute("aria-valuetext", DIMS[x.value - 1] + " dims"));
    ["input", "focusin", "pointerover"].forEach(name => document.addEventListener(name, say));
}"""

logger = logging.getLogger(__name__)


def build(demo: Demo):
    """Build the page, a `gr.Blocks`. It loads nothing from other origins and sends no telemetry."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr

    with gr.Blocks(title="WavLink: sounds and words", analytics_enabled=False, delete_cache=(_SWEPT, _KEPT)) as page:
        gr.HTML(pages.header())
        level = _level(gr, demo)
        with gr.Tab("Name", id="name"):
            _name_tab(gr, demo, level)
        with gr.Tab("Find", id="find"):
            _find_tab(gr, demo, level)
        with gr.Tab("Locate", id="locate"):
            _long_tab(gr, demo, level)
        with gr.Accordion("About this model", open=False, elem_id="details"):
            _details(gr, demo, level)
    return page.queue(max_size=WAITING, default_concurrency_limit=WAITING)


def _level(gr, demo: Demo):
    """Make the slider, whose positions are the nested dims; `_details` shows it, below the tabs that depend on it."""
    if len(demo.dims) == 1:
        return gr.State(1)
    return gr.Slider(
        *(1, len(demo.dims), len(demo.dims), 1),
        label="Dims kept of each vector",
        info="Fewer numbers take less room and change the answers a little: move it, and look at the answer above.",
        buttons=[],
        elem_id="dims",
        render=False,
    )


def _details(gr, demo: Demo, level) -> None:
    """Show what a vector costs at each nested dim, and what was loaded."""
    say = _READ_DIMS.replace("DIMS", str(demo.dims))
    with gr.Row():
        with gr.Column(min_width=300):
            if len(demo.dims) > 1:
                with gr.Group():
                    level.render()
                    gr.HTML(pages.ticks(demo), elem_id="ticks")
        with gr.Column(min_width=300):
            shown = gr.HTML(pages.costs(demo, demo.dims[-1]), elem_id="costs", padding=True)
    gr.HTML(pages.facts(demo), padding=True)
    gr.on(None, None, js=say, api_name=False)  # as the page is loaded
    level.change(
        lambda position: pages.costs(demo, _dim(demo, position)),
        level,
        shown,
        show_progress="hidden",
        api_name="bytes",
    )


def _name_tab(gr, demo: Demo, level) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            sound = _sound(gr, demo, "A sound", samples.NAMES)
            labels = gr.Textbox(
                ", ".join(samples.LABELS) or "a dog barking, a church bell, rain",
                label="What could it be? Names, separated by commas",
                lines=2,
                max_lines=4,
            )
            button = gr.Button("Name it", variant="primary")
        answer = _answer(gr, "name")
    _show_results(gr, demo, level, [button.click], demo.classify, [sound, labels], pages.labels, answer)


def _find_tab(gr, demo: Demo, level) -> None:
    if not demo.indexes:
        gr.HTML('<p class="wl-text">This demo was started without an index of sounds (<code>--index</code>).</p>')
        return
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            text = gr.Textbox("a bell rings", label="A sentence", info="The sounds most like it are found.")
            button = gr.Button("Find sounds", variant="primary")
        answer = _answer(gr, "find")
    _show_results(gr, demo, level, [button.click, text.submit], demo.embed_sentence, [text], pages.sounds, answer)


def _long_tab(gr, demo: Demo, level) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            sound = _sound(gr, demo, "A recording", (samples.RECORDING,) if samples.NAMES else ())
            text = gr.Textbox("an alarm sounds", label="What to look for", info="The answer shows where it is.")
            button = gr.Button("Look for it", variant="primary")
        answer = _answer(gr, "listen")
    _show_results(gr, demo, level, [button.click, text.submit], demo.locate, [sound, text], pages.spans, answer)


def _answer(gr, name: str):
    with gr.Column(scale=3, min_width=300):
        return gr.HTML(pages.waiting(name), elem_id=f"{name}-answer", padding=True)


def _sound(gr, demo: Demo, label: str, names: Sequence[str]):
    """Make an input to upload or record a sound, and buttons that put one of `samples` there."""
    sound = gr.Audio(label=label, sources=["upload", "microphone"], type="filepath", editable=False, buttons=[])
    gr.HTML(f'<p class="wl-note">{pages.limits(demo)} Or try one of these:</p>', padding=True)
    with gr.Row(elem_classes="wl-samples"):
        for name in names:
            button = gr.Button(name, size="sm", min_width=90)
            button.click(partial(samples.sample, name), outputs=sound, show_progress="hidden", api_name=False)
    return sound


def _show_results(gr, demo: Demo, level, starts: list, work: Callable, inputs: list, draw: Callable, shown) -> None:
    """Run `work` when one of `starts` is triggered, and draw its result, again whenever the dims change."""
    answer, name = gr.State(time_to_live=_KEPT), shown.elem_id.removesuffix("-answer")

    def compute(position, *values):
        try:
            drawn = position, work(*values)
        except Exception as error:
            return None, pages.failure(_message(error))
        return drawn, redraw(position, drawn)

    def redraw(position, drawn):
        try:
            if drawn is None:
                return pages.waiting(name)
            return pages.unknown(drawn[1]) + draw(demo, drawn[1], _dim(demo, position))
        except Exception as error:
            return pages.failure(_message(error))

    def catch_up(position, drawn):
        """Draw again if the dims have changed while the result was computed."""
        return gr.skip() if drawn is None or drawn[0] == position else redraw(position, drawn)

    hidden = {"show_progress": "hidden", "api_name": False}
    gr.on(starts, compute, [level, *inputs], [answer, shown], api_name=name).then(
        catch_up, [level, answer], shown, **hidden
    )
    level.change(redraw, [level, answer], shown, trigger_mode="always_last", **hidden)


def _dim(demo: Demo, position: float) -> int:
    """Return the dims at a position of the slider, from 1 on."""
    return demo.dims[min(max(round(position), 1), len(demo.dims)) - 1]


def _message(error: Exception) -> str:
    """Return the line that a visitor sees."""
    if isinstance(error, ValueError):
        return str(error)
    logger.error("a result failed", exc_info=error)
    return "Something went wrong here, not with your input: try again."


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until it is stopped, and return the exit code."""
    return run_command("wavlink space", main_of("wavlink space", of.space, run), argv, extra="space")


def run(options: argparse.Namespace) -> int:
    """Serve the demo until a signal comes; with --check, try it once instead; with --static, write a page."""
    if options.static:
        from hub_cards.space.static_folder import run_static

        return run_static(options)
    if not options.check and find_spec("gradio") is None:  # before a model is loaded for it
        raise ModuleNotFoundError("No module named 'gradio'", name="gradio")
    with signals_as_interrupts(), stdout_for(options.as_json) as print_json, _temporary() as folder:
        demo = _demo(options, folder)
        loaded = _loaded(demo)
        print("\n".join(f"{name:9} {clean(value, 1000)}" for name, value in loaded.items()), flush=True)
        if options.check:
            _check(demo)
            print_json(loaded)
        else:
            _serve(demo, options, lambda url: print_json(loaded | {"url": url}))
    return 0


def _demo(options: argparse.Namespace, folder: Path) -> Demo:
    limits = Limits(options.max_mb, options.max_seconds, options.max_wait)
    options.model = bundled_models.resolve(options.model)
    run = {"device": options.device, "backend": options.backend, "precision": options.precision}
    embedder = Embedder(options.model, revision=options.revision, **run)
    index = options.index
    if index in ("synthetic", "real"):
        index = _index_of_samples(embedder, folder, index)
    trained = trained_on(options.model, options.revision)
    return Demo(embedder, index, options.sounds, limits, trained, options.storage_options)


def _index_of_samples(embedder: Embedder, folder: Path, kind: str) -> str:
    """Write synthetic sounds, two of each kind, or the real ones, and index them; return the index's folder."""
    from wavlink.search.build import index_sounds

    if kind == "real":
        write_real_samples(folder / "sounds")
    else:
        _write_synthetic(folder / "sounds")
    index_sounds(str(folder / "sounds"), folder / "index", embedder, progress=False)
    return str(folder / "index")


def _write_synthetic(folder: Path) -> None:
    from processing.datasets.synthetic import synthetic_dataset

    folder.mkdir()
    for number, row in enumerate(synthetic_dataset("test", clips_per_kind=2)):
        name = f"{row['label'].replace('/', '-')} {number % 2 + 1}.wav"
        (folder / name).write_bytes(row["audio"]["bytes"])


def _loaded(demo: Demo) -> dict:
    embedder = demo.embedder
    return {
        "model": embedder.name,
        "revision": embedder.revision,
        "dims": demo.dims,
        "trained": f"on {demo.trained}",
        "windows": len(next(iter(demo.indexes.values()), ())),
    }


def _theme(gr):
    """Return a theme with the fonts of the visitor's system, and colours with a contrast of 4.5 or more."""
    system = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "DejaVu Sans Mono", "monospace"]
    hues = {"primary_hue": "teal", "secondary_hue": "teal", "neutral_hue": "slate"}
    titles = {"text_color": "*body_text_color", "background_fill": "transparent", "padding": "0"}
    return gr.themes.Soft(**hues, font=system, font_mono=mono).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        color_accent="*primary_600",
        slider_color="*primary_600",
        slider_color_dark="*primary_400",
        input_border_width="1px",
        input_border_color="*neutral_500",
        input_border_color_dark="*neutral_500",
        block_border_width="1px",
        border_color_primary="*neutral_400",
        border_color_primary_dark="*neutral_600",
        button_secondary_border_color="*neutral_500",
        button_border_width="1px",
        block_label_background_fill="*block_background_fill",
        block_label_background_fill_dark="*block_background_fill",
        block_label_text_color="*body_text_color",
        block_label_text_color_dark="*body_text_color",
        **{f"block_title_{name}": value for name, value in titles.items()},
        block_title_text_color_dark="*body_text_color",
        block_title_background_fill_dark="transparent",
    )


def _check(demo: Demo) -> None:
    """Compute a result once, without serving."""
    sentence = demo.embed_sentence("a dog barks")
    if demo.indexes:
        pages.sounds(demo, sentence, demo.dims[0])


def _serve(demo: Demo, options: argparse.Namespace, on_start: Callable[[str], None]) -> None:
    """Serve the page, and call `on_start` with its address."""
    page = build(demo)
    launch(page, options.port, options.max_mb)
    print(f"serving   {page.local_url}", flush=True)
    on_start(page.local_url)
    try:
        threading.Event().wait()  # for a signal, which the page's own wait would treat as a normal end
    finally:
        page.close(verbose=False)


def launch(page, port: int | None, max_mb: float = Limits.megabytes) -> None:
    """Serve a page, a `gr.Blocks`, in a thread.

    Args:
        port: default: the first free one.
        max_mb: the largest upload.
    """
    import gradio as gr

    try:
        page.launch(
            server_port=port,
            max_file_size=int(max_mb * 1e6),
            theme=_theme(gr),
            css_paths=STYLE,
            footer_links=[],
            ssr_mode=False,
            quiet=True,
            prevent_thread_lock=True,
            i18n=gr.I18n(en=_ANNOUNCED),  # other languages fall back to it
        )
    except OSError as error:
        if port is None:
            raise
        raise ValueError(f"--port {port} is not free here: give another, or none for the first free one") from error


@contextmanager
def _temporary() -> Iterator[Path]:
    """Yield a folder for uploads, the synthetic index and plots, which is removed afterwards."""
    with temporary_folder("wavlink-space-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
        yield folder


if __name__ == "__main__":
    sys.exit(main())
