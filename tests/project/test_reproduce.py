"""`make reproduce`: what fits is measured again and compared, the rest listed, and no record is touched."""

import importlib
import json
import shutil
import subprocess

import pytest

from benchmarks import records
from tests.benchmark_records import RECORD

MADE = """
import json, pathlib, sys
here = pathlib.Path(__file__).parent
with open(here / "calls", "a") as calls:
    calls.write(" ".join(sys.argv[1:-2]) + "\\n")
record = json.loads((here / "again.json").read_text())
record["name"] = pathlib.Path(sys.argv[-1]).stem
pathlib.Path(sys.argv[-1]).write_text(json.dumps(record))
"""
COLUMNS = ["dims", "R@10", "seconds", "failures"]


@pytest.fixture
def reproduce(monkeypatch):
    monkeypatch.syspath_prepend(str(records.RESULTS.parent))
    return importlib.import_module("reproduce")


@pytest.mark.parametrize(
    ("kept", "again", "verdict"),
    [
        ({"value": 47.4, "interval": [44.5, 50.5], "digits": 1}, {"value": 44.5, "interval": [41, 48]}, "inside"),
        ({"value": 47.4, "interval": [44.5, 50.5], "digits": 1}, {"value": 44.46}, "inside"),  # 44.5 as it is shown
        ({"value": 47.4, "interval": [44.5, 50.5], "digits": 1}, {"value": 44.4}, "different"),
        ({"value": 47.4, "interval": [44.5, 50.5], "digits": 1}, None, "different"),
        ({"value": 2.5, "range": [2.0, 3.0], "digits": 1}, {"value": 2.9}, "inside"),
        ({"value": 2.5, "range": [2.0, 3.0], "digits": 1}, {"value": 3.2}, "different"),
        ({"value": 2.5, "range": [2.0, 3.0], "digits": 1, "unit": "s"}, {"value": 9.0}, "reported"),
        ({"value": 0.9976, "digits": 3}, {"value": 0.9978}, "same"),
        ({"value": 0.9976, "digits": 3}, {"value": 0.991}, "different"),
        (560, 560, "same"),
        (560, 561, "different"),
        ("as if never killed", "as if never killed", "same"),
        ("as if never killed", "lost", "different"),
        (None, None, "same"),
    ],
)
def test_a_value_is_inside_its_interval_or_different(kept, again, verdict, reproduce):
    assert reproduce.verdict("R@10", kept, again, of_machine=False) == verdict


def test_what_belongs_to_a_machine_is_reported_but_failures_are_not(reproduce):
    assert reproduce.verdict("rounds", 19, 20, of_machine=True) == "reported"
    assert reproduce.verdict("ended", "33 answers", "34 answers", of_machine=True) == "reported"
    assert reproduce.verdict("failures", 0, 1, of_machine=True) == "different"
    assert reproduce.verdict("failures", 0, 0, of_machine=True) == "same"
    interval = {"value": 1.0, "interval": [0.0, 2.0]}
    assert reproduce.verdict("slope", interval, {"value": 3.0}, of_machine=True) == "different"


def test_rows_and_columns_that_are_alike_are_told_apart(reproduce):
    table = records.table(["dims", "difference", "difference"], [[48, 1, 2], [48, 3, 4]])
    cells = dict(reproduce.cells_of({"values": {"t": table}}))
    assert cells["t", "48", "difference"] == 1 and cells["t", "48 2", "difference 2"] == 4


@pytest.fixture
def kept(tmp_path):
    """Four records: one that fits, one that fails, a long one, one without a time; and what measuring gives."""
    results = tmp_path / "results"
    results.mkdir()
    (tmp_path / "made.py").write_text(MADE)
    (tmp_path / "fails.py").write_text("raise SystemExit('no such model')")

    def rows(recall, seconds):
        return [[48, {"value": recall, "interval": [44.5, 50.5], "digits": 1}, records.number(seconds, 1, "s"), 0]]

    def write(name, script, **more):
        command = f"python {tmp_path / script} --data sounds OUT/x"
        record = RECORD | {"name": name, "command": command, "values": {"t": records.table(COLUMNS, rows(47.4, 2))}}
        (results / f"{name}.json").write_text(json.dumps(record | more))

    write("made", "made.py", seconds=30)
    write("failing", "fails.py", seconds=60)
    write("long", "made.py", seconds=3600)
    write("unknown", "made.py")
    (tmp_path / "sounds").mkdir()
    again = RECORD | {"commit": "", "values": {"t": records.table(COLUMNS, rows(46.0, 3))}}
    (tmp_path / "again.json").write_text(json.dumps(again))
    return tmp_path


def measured(reproduce, kept, monkeypatch, *more) -> tuple[int, dict]:
    again = json.loads((kept / "again.json").read_text()) | {"commit": reproduce.environment()["commit"]}
    (kept / "again.json").write_text(json.dumps(again))
    options = [
        "--sounds",
        kept / "sounds",
        "--results",
        kept / "results",
        "--out",
        kept / "out",
        "--hours",
        0.5,
        *more,
    ]
    code = reproduce.main(list(map(str, options)))
    report = json.loads((kept / "out/report.json").read_text())
    return code, {entry["name"]: entry for entry in report["records"]}


def test_what_fits_is_measured_and_compared_and_the_rest_is_listed(reproduce, kept, monkeypatch):
    before = {path: path.read_bytes() for path in (kept / "results").iterdir()}
    code, found = measured(reproduce, kept, monkeypatch)
    assert code == 1 and {name: entry["verdict"] for name, entry in found.items()} == {
        "made": "inside",
        "failing": "failed",
        "long": "not run",
        "unknown": "not run",
    }
    assert (found["long"]["why"], found["unknown"]["why"]) == ("needs longer", "its time is not known")
    assert found["long"]["minutes"] == 60 and "made.py" in found["long"]["command"]
    assert "no such model" in (kept / "out/failing.log").read_text()
    cells = {cell["column"]: cell for cell in found["made"]["cells"]}
    assert cells["R@10"]["verdict"] == "inside" and cells["seconds"] | {"ratio": 1.5} == cells["seconds"]
    assert {path: path.read_bytes() for path in (kept / "results").iterdir()} == before
    assert (kept / "calls").read_text() == f"--data {kept / 'sounds'} {kept / 'out'}/x\n"
    text = (kept / "out/report.md").read_text()
    assert "| made | inside |" in text and "| long | not run | needs longer | 60.0 |" in text


def test_a_report_of_some_records_keeps_those_of_the_others(reproduce, kept, monkeypatch):
    _, whole = measured(reproduce, kept, monkeypatch)
    code, found = measured(reproduce, kept, monkeypatch, "--only", "made")
    assert code == 0 and found == whole
    path = kept / "out/report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "0000000"}))
    assert measured(reproduce, kept, monkeypatch, "--only", "made")[1].keys() == {"made"}


def test_the_same_command_goes_on_and_another_commit_measures_anew(reproduce, kept, monkeypatch):
    options = "--only", "made"
    for calls in (1, 1):
        assert measured(reproduce, kept, monkeypatch, *options)[0] == 0
        assert (kept / "calls").read_text().count("\n") == calls
    path = kept / "out/records/made.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "0000000"}))
    assert measured(reproduce, kept, monkeypatch, *options)[0] == 0
    assert (kept / "calls").read_text().count("\n") == 2


def test_every_record_is_made_from_what_a_clone_and_its_commands_give(reproduce):
    """A file that a command reads, such as the scores of another one, is written by a command before it."""
    kept = [records.read(path) for path in records.RESULTS.glob("*.json")]
    chosen, _ = reproduce.plan([record for record in kept if "source" not in record], hours=1e6)
    for record in chosen:
        again = reproduce.again_of(record)
        *before, last = (line.split() for line in (*again.before, again.command or record["command"]))
        written = {words[words.index("--output") + 1] for words in before if "--output" in words}
        read = {word.rpartition("=")[2] for word in last if word.endswith((".json", ".jsonl"))}
        assert read <= written, f"{record['name']} reads {read - written}, which nothing makes"


def test_an_unknown_record_is_refused_with_those_there_are(reproduce, kept, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        measured(reproduce, kept, monkeypatch, "--only", "maed")
    assert "--only maed: there is no such record, only failing, long, made, unknown" in capsys.readouterr().err


def test_a_difference_stands_with_both_figures(reproduce, kept, monkeypatch):
    again = json.loads((kept / "again.json").read_text())
    again["values"]["t"]["rows"][0][1] = {"value": 12.3, "digits": 1}
    (kept / "again.json").write_text(json.dumps(again))
    code, found = measured(reproduce, kept, monkeypatch, "--only", "made")
    assert code == 1 and found["made"]["verdict"] == "different"
    assert "| t | 48 | R@10 | 47.4 [44.5, 50.5] | 12.3 |" in (kept / "out/report.md").read_text()


def test_records_are_never_the_place_of_the_report(reproduce, kept, capsys):
    options = ["--sounds", str(kept / "sounds"), "--results", str(kept / "results")]
    with pytest.raises(SystemExit):
        reproduce.main([*options, "--out", str(kept / "results/again")])
    with pytest.raises(SystemExit):
        reproduce.main(["--sounds", str(kept / "none")])
    assert "is no folder" in capsys.readouterr().err


def test_a_command_that_hangs_is_killed(reproduce, kept, monkeypatch):
    (kept / "fails.py").write_text("import time; time.sleep(600)")
    monkeypatch.setattr(reproduce, "PATIENCE", (0, 0))
    code, found = measured(reproduce, kept, monkeypatch, "--only", "failing")
    assert code == 1 and "times as long as expected" in found["failing"]["why"]


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_make_names_what_is_missing():
    done = subprocess.run(["make", "-n", "reproduce"], cwd=records.RESULTS.parents[1], capture_output=True, text=True)
    assert done.returncode and "make reproduce SOUNDS=FOLDER" in done.stderr
