"""Migration of an index to another model: resumable, in one commit, while the old one answers."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests import searches
from tests.searches import SECONDS, assert_same_rows, index, rows, write
from wavlink.embedder import Embedder
from wavlink.search import command as search
from wavlink.search import migration
from wavlink.search.index import Index
from wavlink.search.metadata import described
from wavlink.search.migration import FOLDER, migrate
from wavlink.search.table import Table

models, embedder, sounds = searches.models, searches.embedder, searches.sounds
ROOT, SLOW = Path(__file__).parents[2], pytest.mark.slow


@pytest.fixture(scope="module")
def other(models) -> Embedder:
    return Embedder(str(models["other"]))


def version(folder) -> int:
    return Table.open(folder).dataset.version


def test_a_migrated_index_is_that_of_the_new_model(sounds, tmp_path, models, embedder, other, monkeypatch):
    out = tmp_path / "index"
    (sounds / "m.csv").write_text("file_name,label,n\nbell.flac,bell,3\nrain.wav,rain,\n")
    index(sounds, out, embedder, metadata=sounds / "m.csv", window=5.0, hop=2.5, storage="fp32", dim=16)
    columns, versions = described(Table.open(out)), []
    real = Table.replace_all

    def replace_all(table, *arguments):
        versions.append(version(out))
        real(table, *arguments)
        versions.append(version(out))

    monkeypatch.setattr(Table, "replace_all", replace_all)
    report = migrate(out, str(models["other"]), dim=32, progress=False)
    assert (report.sounds, report.changed, report.removed, report.skipped) == (5, 5, 0, {})
    assert versions[1] == versions[0] + 1  # the switch is one commit
    index(sounds, tmp_path / "anew", other, window=5.0, hop=2.5, storage="fp32", dim=32)
    assert_same_rows(out, tmp_path / "anew")
    manifest = Table.open(out).manifest
    assert (manifest.model, manifest.revision, manifest.window, manifest.storage, manifest.dim) == (
        *(str(models["other"]), other.revision, 5.0, "fp32", 32),
    )
    assert described(Table.open(out)) == columns and not (out / FOLDER).exists()
    hit = Index.open(out).query(sound=sounds / "bell.flac", top_k=1, where="n = 3")[0]
    assert hit.path == "bell.flac" and hit.score == pytest.approx(1, abs=1e-3) and hit.metadata["label"] == "bell"
    assert index(sounds, out).unchanged == 5  # later runs go on with the new model
    search.main(["verify", str(out)])


def test_an_open_index_answers_before_and_after(sounds, tmp_path, models, embedder, other, monkeypatch):
    """It answers by the old model until the switch, then by the new one; vectors of the old model are refused."""
    out = tmp_path / "index"
    index(sounds, out, str(models["model"]), dim=16)
    opened, answers = Index.open(out), []
    text = opened.query("a dog", top_k=9)
    vector = opened.embedder.embed_text(["a dog"])[0]
    real = migration._switch

    def switch(*arguments):
        answers.append(opened.query("a dog", top_k=9))
        return real(*arguments)

    monkeypatch.setattr(migration, "_switch", switch)
    migrate(out, str(models["other"]), dim=8, progress=False)
    assert answers == [text]
    with pytest.raises(ValueError, match="another model now"):
        opened.nearest(vector)
    after = opened.query("a dog", top_k=9)
    assert after == Index.open(out, other).query("a dog", top_k=9) != text
    assert opened.manifest.dim == 8 and opened.embedder.revision == other.revision and len(opened) == 9
    assert [hit.path for hit in opened.nearest(opened.embedder.embed_text(["a dog"])[0], 9)] == [
        hit.path for hit in after
    ]


def test_an_index_that_was_opened_with_the_old_model_refuses(sounds, tmp_path, models, embedder):
    out = tmp_path / "index"
    index(sounds, out, embedder)
    opened = Index.open(out, embedder)
    named = Index.open(out, dim=16)
    assert opened.query("a dog")
    migrate(out, str(models["other"]), dim=8, progress=False)
    with pytest.raises(ValueError, match="their vectors do not compare"):
        opened.query("a dog")
    with pytest.raises(ValueError, match="dim=16: the index can be searched at 8"):
        named.query("a dog")


def test_queries_during_a_switch_are_of_one_model(sounds, tmp_path, models, embedder, other):
    """A thread asks all the time: each answer is that of one of the two models."""
    out = tmp_path / "index"
    index(sounds, out, str(models["model"]), dim=16)
    opened, answers, stop = Index.open(out), [], threading.Event()
    before = opened.query("a dog", top_k=9)

    def ask():
        while not stop.is_set():
            answers.append(opened.query("a dog", top_k=9))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        migrate(out, str(models["other"]), dim=16, progress=False)
    finally:
        stop.set()
        thread.join()
    after = Index.open(out, other).query("a dog", top_k=9)
    assert before in answers and all(answer in (before, after) for answer in answers)
    assert opened.query("a dog", top_k=9) == after


def test_files_that_are_gone_new_or_broken(sounds, tmp_path, embedder, other):
    out = tmp_path / "index"
    (sounds / "broken.wav").write_bytes(b"no sound")
    index(sounds, out, embedder)
    shutil.rmtree(sounds / "dog")
    write(sounds / "new.wav", 7)
    write(sounds / "bell.flac", 8, 4.0)
    report = migrate(out, other, progress=False)
    assert (report.sounds, report.changed, report.removed, [*report.skipped]) == (3, 3, 2, ["broken.wav"])
    files = Table.open(out).files()
    assert {*files} == {"bell.flac", "rain.wav", "cat.ogg", "broken.wav"}  # new ones are for the next `index`
    report = index(sounds, out)
    assert (report.added, report.unchanged) == (1, 3)


def test_what_is_indexed_meanwhile_is_migrated_too(sounds, tmp_path, embedder, other, monkeypatch):
    out, real = tmp_path / "index", migration.index_sounds
    index(sounds, out, embedder)

    def index_sounds(*arguments, **options):
        report = real(*arguments, **options)
        if not (sounds / "late.wav").exists():
            write(sounds / "late.wav", 7)
            index(sounds, out, embedder)
        return report

    monkeypatch.setattr(migration, "index_sounds", index_sounds)
    assert migrate(out, other, progress=False).sounds == 6
    index(sounds, tmp_path / "anew", other)
    assert_same_rows(out, tmp_path / "anew")


CODE = """
import os, signal, sys
from wavlink.search import migration, table
index, model, where = sys.argv[1:]
def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if where == "embedding":
    table.Table.append = kill
elif where == "before":
    migration._switch = kill
elif where == "switch":
    real = table.Table.commit_operation
    table.Table.commit_operation = lambda t, made: kill() if "Overwrite" in repr(type(made)) else real(t, made)
elif where == "after":
    migration.vector_index.update = lambda t, *_: kill() if "/.migration" not in t.index else None
migration.migrate(index, model, progress=False)
"""


@pytest.mark.parametrize("where", ["switch", *(pytest.param(x, marks=SLOW) for x in ("embedding", "before", "after"))])
def test_a_killed_migration_goes_on_with_the_same_call(sounds, tmp_path, models, embedder, other, where, monkeypatch):
    out = tmp_path / "index"
    index(sounds, out, embedder)
    before = rows(out)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", CODE, out, models["other"], where]
    assert subprocess.run(arguments, env=environment, timeout=300, cwd=ROOT).returncode == -signal.SIGKILL
    table = Table.open(out)
    if where == "after":
        assert table.manifest.revision == other.revision
    else:
        assert table.manifest.revision == embedder.revision
        assert all((rows(out)[key] == vector).all() for key, vector in before.items())
    embedded = []
    real = migration.index_sounds
    monkeypatch.setattr(migration, "index_sounds", lambda *a, **o: embedded.append(real(*a, **o)) or embedded[-1])
    report = migrate(out, other, progress=False)
    assert report.sounds == 5 and not (out / FOLDER).exists()
    if where in ("before", "switch"):
        assert embedded[0].unchanged == 5  # nothing is embedded twice
    index(sounds, tmp_path / "anew", other)
    assert_same_rows(out, tmp_path / "anew")


def test_a_stopped_migration_switches_nothing(sounds, tmp_path, embedder, other):
    index(sounds, tmp_path / "index", embedder)
    stop = threading.Event()
    stop.set()
    assert migrate(tmp_path / "index", other, progress=False, stop=stop).stopped
    assert Table.open(tmp_path / "index").manifest.revision == embedder.revision
    assert migrate(tmp_path / "index", other, progress=False).changed == 5


def test_a_migration_to_the_same_model_changes_nothing(sounds, tmp_path, embedder):
    index(sounds, tmp_path / "index", embedder)
    before = version(tmp_path / "index")
    report = migrate(tmp_path / "index", embedder, progress=False)
    assert (report.changed, report.unchanged, report.sounds) == (0, 5, 5) and version(tmp_path / "index") == before


def test_a_migration_to_a_third_model_starts_anew(sounds, tmp_path, models, embedder, other):
    out = tmp_path / "index"
    index(sounds, out, embedder)
    index(sounds, out / FOLDER, embedder, dim=8)  # as an interrupted one has left it
    assert migrate(out, other, progress=False).changed == 5
    assert Table.open(out).manifest.revision == other.revision


def test_what_cannot_be_migrated_is_refused(sounds, tmp_path, embedder, other):
    with pytest.raises(ValueError, match="no index"):
        migrate(tmp_path / "missing", other)
    out = tmp_path / "index"
    index(sounds, out, embedder)
    sounds.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="is not there: name it by --root"):
        migrate(out, other)
    assert migrate(out, other, root=str(tmp_path / "moved"), progress=False).sounds == len(SECONDS)


def test_command_line(sounds, tmp_path, models, capsys):
    out = str(tmp_path / "index")
    assert search.main(["index", str(sounds), "--out", out, "--model", str(models["model"])]) == 0
    assert search.main(["index", "--migrate", str(models["other"]), "--out", out]) == 0
    assert "5 changed" in capsys.readouterr().out
    assert search.main(["index", str(sounds), "--out", out]) == 0
    for arguments in (["index", "--out", out], ["index", "--migrate", "m", "--model", "m", "--out", out]):
        with pytest.raises(SystemExit, match="2"):
            search.main(arguments)
