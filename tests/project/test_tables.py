"""Tables of README and docs are those of the records, and a record that says too little is refused."""

import argparse
import copy
import importlib
import json
import runpy
import sys

import pytest

from benchmarks import records, tables
from tests.benchmark_records import RECORD
from tests.processes import run_process

PAGE = "# A page\n\n<!-- table: made -->\nstale\n<!-- /table -->\n\nafter\n"


@pytest.fixture
def results(tmp_path):
    (tmp_path / "made.json").write_text(json.dumps(RECORD), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("path", tables.pages(), ids=lambda path: str(path.relative_to(tables.ROOT)))
def test_every_page_shows_what_its_records_hold(path):
    page = path.read_text(encoding="utf-8")
    assert tables.rendered(page) == page, "run `make tables`"


@pytest.mark.parametrize("path", sorted(records.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_record_is_complete(path):
    assert records.read(path)["values"]


def test_a_table_is_rendered_between_its_markers_and_again_without_a_change(results):
    fresh = tables.rendered(PAGE, results)
    assert fresh.startswith("# A page\n\n<!-- table: made -->\n\n| dims | R@10 |\n| --- | ---: |\n| 48 | 46.7 |\n")
    assert "| a\\|b |  |\n\n`python benchmarks/made.py` (seed 0, commit abc1234, 2 cores, torch 2.13.0," in fresh
    assert fresh.endswith("\n<!-- /table -->\n\nafter\n") and "stale" not in fresh
    assert tables.rendered(fresh, results) == fresh


def test_some_rows_of_a_table_are_shown_alone(results):
    fresh = tables.rendered(PAGE.replace("table: made", "table: made where dims=48"), results)
    assert "| 48 | 46.7 |" in fresh and "a\\|b" not in fresh
    assert tables.rendered(fresh, results) == fresh


@pytest.mark.parametrize("name", ["later", "made/later"])
def test_a_table_that_is_still_to_be_recorded_is_left_out_until_then(name, results):
    page = PAGE.replace("table: made", f"table: {name} where dims=48, once recorded")
    fresh = tables.rendered(page, results)
    assert "|" not in fresh and "stale" not in fresh and tables.rendered(fresh, results) == fresh
    values = {"later": RECORD["values"]["recall"]}
    stem = name.partition("/")[0]
    (results / f"{stem}.json").write_text(json.dumps(RECORD | {"name": stem, "values": values}), encoding="utf-8")
    assert "| 48 | 46.7 |" in tables.rendered(fresh, results)


def test_cells_print_values_intervals_ranges_and_units():
    interval = records.percent({"value": 0.4744, "interval": [0.445, 0.505]})
    difference = records.percent({"value": 0.004, "interval": [-0.001, 0.008]}, signed=True)
    spread = {"value": 2.5, "range": [2.0, 3.0], "digits": 1, "unit": "s"}
    table = records.table(
        ["a", "b", "c", "d", "e"], [[interval, difference, spread, 2000000, records.number(8.72, 1)]]
    )
    row = tables.markdown(table).splitlines()[-1]
    assert row == "| 47.4 [44.5, 50.5] | +0.4 [-0.1, +0.8] | 2.5 (2.0 to 3.0) s | 2,000,000 | 8.7 |"


@pytest.mark.parametrize(
    "page, error",
    [
        (PAGE.replace("table: made", "table: other"), "names no record; there are made"),
        (PAGE.replace("table: made", "table: made/speed"), "names no table of made.json; there are recall"),
        (PAGE.replace("<!-- /table -->", ""), "ends with"),
        (PAGE + "<!-- table: made -->\n", "ends with"),
        (PAGE.replace("<!-- table: made -->", "text <!-- table: made -->"), "ends with"),
        (PAGE.replace("table: made", "table:made"), "begins with"),
        (PAGE.replace("table: made", "table: made where dim=48"), "has no column 'dim'; there are dims, R@10"),
        (PAGE.replace("table: made", "table: made where dims=96"), "has no row with dims=96"),
    ],
)
def test_a_marker_that_names_nothing_or_lacks_its_other_half_is_refused(page, error, results):
    with pytest.raises(ValueError, match=error):
        tables.rendered(page, results)


def test_a_stale_page_fails_the_check_and_is_mended(tmp_path, monkeypatch, capsys, results):
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "pages", lambda: [page])
    monkeypatch.setattr(tables, "rendered", lambda text, own=tables.rendered: own(text, results))
    assert tables.main(["--check"]) == 1 and page.read_text(encoding="utf-8") == PAGE
    assert tables.main([]) == 0 and tables.main(["--check"]) == 0
    page.write_text(PAGE.replace("made", "gone"), encoding="utf-8")
    assert tables.main(["--check"]) == 2
    assert "page.md: table: gone names no record" in capsys.readouterr().err


def test_the_command_runs_as_a_script():
    done = run_process([sys.executable, tables.__file__, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "change, error",
    [
        ({"commit": ...}, "no commit"),
        ({"seed": ...}, "no seed"),
        ({"minutes": 3}, "unknown fields minutes"),
        ({"versions": {"torch": "2.13.0"}}, "versions must name python"),
        ({"values": {}}, "no table"),
        ({"values": {"recall": {"columns": ["a"], "rows": [[1, 2]]}}}, "2 cells under 1 columns"),
        ({"values": {"recall": {"columns": ["a"], "rows": [[{"value": 1, "interval": [3, 2]}]]}}}, "no cell"),
        ({"values": {"recall": {"columns": ["a"], "rows": [[float("nan")]]}}}, "no cell"),
        ({"values": {"recall": {"columns": ["a"], "rows": [[{"value": 1, "low": 0}]]}}}, "no cell"),
    ],
)
def test_a_record_that_says_too_little_is_refused(change, error):
    record = copy.deepcopy(RECORD) | {name: value for name, value in change.items() if value is not ...}
    record = {name: value for name, value in record.items() if change.get(name) is not ...}
    with pytest.raises(ValueError, match=error):
        records.check(record)


def test_a_record_of_someone_else_needs_its_source_and_no_machine():
    quoted = {"name": "paper", "title": "A paper's", "source": "A paper", "values": RECORD["values"]}
    records.check(quoted)
    assert tables.measured(quoted) == "*A paper*"
    with pytest.raises(ValueError, match="no command"):
        records.check({name: value for name, value in quoted.items() if name != "source"})


def test_a_script_writes_a_record_of_its_own_run(tmp_path, monkeypatch):
    parser = argparse.ArgumentParser()
    records.add_option(parser, "storage")
    assert parser.parse_args([]).record is None
    assert parser.parse_args(["--record"]).record == records.RESULTS / "storage.json"
    path = parser.parse_args(["--record", str(tmp_path / "new" / "storage.json")]).record
    script = str(records.RESULTS.with_name("storage.py"))
    about_the_record = ["--record", "a.json", "--title", "of two", "--stop_after", "9"]
    words = [script, str(tmp_path / "best"), *about_the_record, "--million", "0", "a b"]
    monkeypatch.setattr(sys, "argv", words)
    raw = {"folder": tmp_path, "models": [f"random:{tmp_path}/best", "https://a.b/c/d", "audio/text"]}
    records.write(path, title="Storage", seed=0, values=RECORD["values"], raw=raw)
    record = records.read(path)
    assert record["command"] == "python benchmarks/storage.py best --million 0 'a b'"
    assert record["raw"] == {"folder": tmp_path.name, "models": ["random:best", "https://a.b/c/d", "audio/text"]}
    assert record["versions"]["torch"] and record["machine"]["cpus"] and record["seed"] == 0
    records.write(None, title="Storage", seed=0, values={})  # not asked for
    with pytest.raises(ValueError, match="no table"):
        records.write(tmp_path / "empty.json", title="Storage", seed=0, values={})
    assert not (tmp_path / "empty.json").exists()


def test_a_record_has_the_name_of_its_file(results):
    (results / "made.json").rename(results / "other.json")
    with pytest.raises(ValueError, match="other.json: its name is 'made'"):
        records.read(results / "other.json")


def test_scores_of_several_seeds_become_a_record(tmp_path, monkeypatch, capsys):
    for seed, value in enumerate((0.2, 0.3)):
        figure = {"value": value, "interval": [value - 0.1, value + 0.1]}
        row = {"R@1": figure, "R@5": figure, "R@10": figure, "mAP@10": figure}
        scores = {"model": "m", "text_to_audio": {"16": row, "8": row}, "audio_to_text": {"16": row, "8": row}}
        scores["zero_shot"] = {"16": {"accuracy": figure}}
        (tmp_path / f"{seed}.json").write_text(json.dumps(scores))
        (tmp_path / f"{seed}.jsonl").write_text(json.dumps({"step": 1, "validation": scores}) + "\n")
    script, path = str(records.RESULTS.with_name("scores.py")), tmp_path / "sounds.json"
    words = [f"a={tmp_path}/0.json", f"a={tmp_path}/1.jsonl", f"b={tmp_path}/1.json", "--record", str(path)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *words])
    monkeypatch.syspath_prepend(str(records.RESULTS.parent))  # as Python does for a script
    runpy.run_path(script, run_name="__main__")
    cells = records.read(path)["values"]["summary"]["rows"]
    assert cells[0][:2] == ["a", 2] and cells[0][2] == {"value": 25.0, "range": [20.0, 30.0], "digits": 1}
    assert cells[1][2]["interval"] == pytest.approx([20.0, 40.0]) and cells[1][-1]["value"] == 30.0
    assert "| a | 2 | 25.0 (20.0 to 30.0) |" in capsys.readouterr().out
    assert len(records.read(path)["values"]["dims"]["rows"]) == 4


@pytest.mark.parametrize("content", ['{"zero_shot": {}}', '{"models": []}', "[]", "{", None])
def test_a_file_without_scores_of_retrieval_is_refused_in_a_line(tmp_path, monkeypatch, capsys, content):
    script, file = str(records.RESULTS.with_name("scores.py")), tmp_path / "labels.json"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(sys, "argv", [script, f"a={file}"])
    monkeypatch.syspath_prepend(str(records.RESULTS.parent))
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(script, run_name="__main__")
    assert stopped.value.code == 2 and "scores.py: error: " in capsys.readouterr().err


def test_changed_sounds_and_queries_become_tables(monkeypatch):
    monkeypatch.syspath_prepend(str(records.RESULTS.parent))
    robustness = runpy.run_path(str(records.RESULTS.with_name("scores.py")))["robustness"]

    def way(change: float) -> dict:
        values = {"unchanged": 0.5, "changed": 0.5 + change, "difference": change}
        return {"queries": 9} | {name: {"value": x, "interval": [x - 0.1, x + 0.1]} for name, x in values.items()}

    row = {"text_to_audio": way(-0.2), "audio_to_text": way(0.1)}
    excluded = {"excluded": {"top": way(0.3), "lower": {"value": 0.25, "interval": [0.1, 0.4]}}}
    changes = {"noise": row | {"kind": "sounds"}, "X, no Y": row | excluded | {"kind": "queries"}}
    found = robustness(
        {"robustness": {"limit": 0.05, "changes": changes, "falls": {"noise": {"text_to_audio": -0.2}}}}
    )
    assert tables.markdown(found["sounds"]).splitlines()[-1] == (
        "| noise | 9 | 50.0 | 30.0 | -20.0 [-30.0, -10.0] | 50.0 | 60.0 | +10.0 [+0.0, +20.0] | text → audio |"
    )
    assert found["sounds"]["columns"][-1] == "falls by more than 5 points" and len(found["queries"]["rows"]) == 1
    assert tables.markdown(found["excluded"]).splitlines()[-1] == (
        "| X, no Y | 50.0 [40.0, 60.0] | 80.0 [70.0, 90.0] | 25.0 [10.0, 40.0] |"
    )
    assert robustness({"text_to_audio": {}}) == {}


ROWS = ("CLAP", "WavLink Base", "WavLink Base, pooled by 2 after layers 1 and 3", "WavLink Base, torch's kernels")


def speed_figures() -> dict:
    """CLAP takes 2 s a clip, the first WavLink 1 s, the others 0.5 s; a second batch size is slower."""
    times = [
        {"row": row, "seconds": seconds, "way": way, "batch": batch, "clips": 2, "times": [spent * batch] * 3}
        for row, spent in zip(ROWS, (4.0, 2.0, 1.0, 1.0), strict=True)
        for seconds in (1, 10, 30)
        for way in ("stream", "file", "features")
        for batch in (1, 2)
    ]
    times += [
        {"row": row, "seconds": 10, "way": way, "batch": 1, "clips": 1, "times": [spent] * 3}
        for row, spent in ((ROWS[0], 0.5), (ROWS[1], 0.25))
        for way in ("decode", "log-mel")
    ]
    times += [
        {"row": ROWS[1], "seconds": 10, "way": f"{way}, alone", "batch": 1, "clips": 1, "times": [0.5] * 3}
        for way in ("decode", "log-mel")
    ]
    operations = {"10": 1e9}
    products = [{"gflops": 2.0}, {"gflops": 1.0}]
    return {"times": times, "operations": operations, "products": products, "cosines": {ROWS[1]: 1.0}}


@pytest.fixture
def benchmark_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(records.RESULTS.parent))


def test_figures_of_speed_become_ratios_to_clap(benchmark_modules):
    report = importlib.import_module("speed_report")
    values = report.as_values(speed_figures())
    for table in values.values():
        records.check(RECORD | {"values": {"table": table}})
    assert values["summary"]["columns"] == ["clip", *ROWS[:3]]
    assert [[cell["value"] for cell in row[1:]] for row in values["summary"]["rows"]] == [[2000, 2, 4], [2000, 2, 4]]
    longest = values["stream"]["rows"][2]
    assert longest[:2] == ["CLAP", "30 s"] and longest[3] is None and longest[4]["value"] == 5  # 10 s of the 30
    assert values["peak"]["rows"][0][1]["value"] == 50  # 1 GFLOP in 1 s, of 2 GFLOPS
    found = [
        [row[0], row[1]["value"], row[2]["value"], row[3]] for row in values["goals"]["rows"] if "int8" not in row[0]
    ]
    assert found == [
        ["Base in fp32, 10 s, at least", 1.35, 2.0, "WavLink Base"],
        ["decode and log-mel in a stream, 10 s, at most", 2.5, 500.0, "WavLink Base"],
        ["decode and log-mel of one file alone, 10 s, at most", 2.5, 1000.0, "WavLink Base"],
    ]
    stage = {row[0]: [cell["value"] for cell in row[2:]] for row in values["stages"]["rows"]}
    assert stage["CLAP"] == [500, 500, 2000, *(pytest.approx(share) for share in (100 / 6, 100 / 6, 400 / 6))]
    assert stage["WavLink Base"] == [250, 250, 1000, *(pytest.approx(share) for share in (100 / 6, 100 / 6, 400 / 6))]


def test_processes_are_compared_with_claps(benchmark_modules):
    run = {"imported": 1.0, "loaded": 2.0, "first": 2.5, "wall": 3.0, "memory": 100.0, "torch": True}
    exported = run | {"memory": 50.0, "torch": False}
    values = importlib.import_module("start").as_values(
        {ROWS[0]: [run] * 2, ROWS[1]: [run | {"memory": 80.0}, run | {"memory": 90.0}], "exported": [exported]}
    )
    for table in values.values():
        records.check(RECORD | {"values": {"table": table}})
    assert [row[-2] for row in values["start"]["rows"]] == ["yes", "yes", "no"]
    assert [[row[0], row[1]["value"], row[2]["value"]] for row in values["goals"]["rows"]] == [
        ["WavLink Base: peak memory, at most CLAP's", 100.0, 85.0],
        ["exported: first vector, at most", 1.5, 3.0],
        ["exported: peak memory, at most CLAP's", 100.0, 50.0],
    ]


def test_no_legend_of_a_picture_covers_its_curves(benchmark_modules):
    pictures = importlib.import_module("pictures")
    figure = {"value": 0.5, "interval": [0.4, 0.6]}
    recall = [
        {
            "dim": dim,
            "storage": storage,
            "bytes": dim,
            "text_to_audio": {"R@10": figure},
            "audio_to_text": {"R@10": figure},
        }
        for dim in (8, 16)
        for storage in ("fp32", "fp16", "int8", "binary")
    ]
    gap = {"value": 0.1, "interval": [0.05, 0.15], "seeds": [0.08, 0.12]}
    pairs = {f"one against another {number}": {"R@10": gap, "R@10 small": gap} for number in range(9)}
    drawn = {
        pictures.draw_speed: speed_figures(),
        pictures.draw_storage: {"recall": recall},
        pictures.draw_claims: {"pairs": pairs},
    }
    for draw, raw in drawn.items():
        picture = draw({"raw": raw})
        picture.canvas.draw()
        box = picture.legends[0].get_window_extent()
        parts = [part.get_window_extent() for axes in picture.axes for part in (axes, axes.xaxis.label)]
        assert len(parts) == 2 * len(picture.axes) and not any(box.overlaps(part) for part in parts)
