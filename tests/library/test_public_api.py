"""`import wavlink`: every public name, its example, and what may lie in the folder that it is imported in."""

import ast
import configparser
import doctest
import inspect
import json
import os
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile

import wavlink
from tests.conftest import RATE, tone
from tests.processes import run_process
from wavlink import localization
from wavlink.embedder import Embedder
from wavlink.evaluation import command as evaluation

ROOT = Path(__file__).parents[2]
NAMES = (
    "WavLinkConfig WavLinkModel WavLinkProcessor WavLinkFeatureExtractor WavLinkTrainer Embedder Index classify "
    "locate evaluate train load_audio load_recipe bundled register_mteb"
).split()
FUNCTIONS = [name for name in NAMES if name.islower()]
LABELS = ["a low sound", "a high sound"]
VERBS = "classify find evaluate train decode load return".split()


@pytest.fixture
def sounds_folder(tmp_path) -> Path:
    """An audiofolder with the splits that training and evaluation read."""
    folder = tmp_path / "sounds"
    rows = [("low", 200), ("high", 2000), ("bell", 900), ("rain", 500)]
    for split in ("", "train", "validation", "test"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for name, hertz in rows if split else rows[:2]:
            soundfile.write(folder / split / f"{name}.wav", tone(hertz, 1.0), RATE)
        if split:
            lines = ["file_name,caption", *(f"{name}.wav,a {name} sound" for name, _ in rows)]
            (folder / split / "metadata.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture
def namespace(wavlink_folder, tiny_bundle, sounds_folder, tmp_path) -> dict:
    """What the examples may use without defining it, and a bundled model."""
    (tmp_path / "output").mkdir()
    return {"model_folder": wavlink_folder, "sounds_folder": sounds_folder, "output_folder": tmp_path / "output"}


def in_process(code: str, cwd: Path, *args, path: str | Path = ROOT):
    """A finished process that has run the code in the folder `cwd`, with this project beside it on `sys.path`."""
    return run_process(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, args)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path), "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )


def test_all_is_complete_and_in_order():
    assert wavlink.__all__ == NAMES
    assert set(NAMES) <= set(dir(wavlink)) and "__version__" in dir(wavlink)
    for name in NAMES:
        value = getattr(wavlink, name)
        assert value.__name__ == name and getattr(wavlink, name) is value
    with pytest.raises(AttributeError, match="no attribute 'Embeder'"):
        wavlink.Embeder  # noqa: B018


def test_a_type_checker_sees_every_name():
    """The imports of the block for type checkers are those that a lazy attribute makes."""
    tree = ast.parse(Path(wavlink.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    seen = {
        alias.name: f"{'wavlink.' if node.level else ''}{node.module}" for node in block.body for alias in node.names
    }
    assert seen == {name: home for name, (home, _) in wavlink._HOMES.items()} and [*wavlink._HOMES] == NAMES
    assert Path(wavlink.__file__).with_name("py.typed").is_file()


def test_version_has_one_source():
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg")
    assert config["metadata"]["version"] == "attr: wavlink.__version__"
    assert wavlink.__version__.split(".")[0].isdigit()


@pytest.mark.parametrize("name", NAMES)
def test_docstring_begins_with_a_summary_and_ends_with_an_example(name):
    text = inspect.cleandoc(getattr(wavlink, name).__doc__)
    first = text.splitlines()[0]
    assert first.endswith((".", ";")) or "." in first, first
    assert name not in FUNCTIONS or first.split()[0].lower() in VERBS, first
    assert "Raises:" in text and text.endswith("```")
    assert doctest.DocTestParser().get_examples(text.rpartition("Example:")[2])


@pytest.mark.parametrize("name", NAMES)
def test_example_runs(name, namespace):
    if name == "register_mteb":
        pytest.importorskip("mteb", reason="mteb, of the extras maeb and dev, is not installed")
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    test = doctest.DocTestParser().get_doctest(getattr(wavlink, name).__doc__, namespace, name, None, 0)
    said = []
    assert runner.run(test, out=said.append).failed == 0, "".join(said)
    assert runner.tries


@pytest.mark.parametrize("name", ["remove", "info"])
def test_example_of_a_method_runs(name, namespace):
    method = getattr(wavlink.Index, name)
    text = inspect.cleandoc(method.__doc__)
    assert text.splitlines()[0].endswith(".") and text.endswith("```")
    test = doctest.DocTestParser().get_doctest(method.__doc__, namespace, name, None, 0)
    said = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert runner.run(test, out=said.append).failed == 0 and runner.tries, "".join(said)


def test_example_of_the_package_runs(namespace):
    test = doctest.DocTestParser().get_doctest(wavlink.__doc__, namespace, "wavlink", None, 0)
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0


@pytest.mark.parametrize("name", NAMES)
def test_signature_is_annotated(name):
    value = getattr(wavlink, name)
    functions = (
        [value]
        if name in FUNCTIONS
        else [value.build, value.open, value.query, value.remove, value.info]
        if name == "Index"
        else []
    )
    functions += [value.__init__, value.embed_files, value.embed_clips, value.embed_text] if name == "Embedder" else []
    for function in functions:
        for parameter in inspect.signature(function).parameters.values():
            assert parameter.name == "self" or parameter.annotation is not parameter.empty, parameter
        assert function.__name__ == "__init__" or inspect.signature(function).return_annotation is not None


def test_import_loads_no_heavy_package(tmp_path):
    done = in_process(
        """
        import sys, time
        before, start = set(sys.modules), time.process_time()
        import wavlink
        seconds = time.process_time() - start
        assert wavlink.__version__ and set(wavlink.__all__) < set(dir(wavlink))
        print(seconds, *sorted({name.split(".")[0] for name in set(sys.modules) - before}))
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    seconds, *modules = done.stdout.split()
    assert set(modules) <= {*sys.stdlib_module_names, "processing", "wavlink"}
    assert float(seconds) < 1  # 0.02 on an idle machine


FIND = "importlib.util.find_spec"
AUTO = """
import sys
{first}
{second}
folder = sys.argv[1]
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor
for auto in (AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor):
    loaded = type(auto.from_pretrained(folder))
    assert loaded is getattr(wavlink, loaded.__name__), loaded
assert not any("transformers_modules" in name for name in sys.modules)
import importlib.util
assert type(importlib.util.find_spec("transformers").loader).__name__ == "SourceFileLoader"
assert "exec_module" not in vars(sys.modules["transformers"].__spec__.loader)
"""


@pytest.mark.parametrize(
    "first, second",
    [
        pytest.param("import transformers", "import wavlink", marks=pytest.mark.slow),
        pytest.param("from transformers import AutoModel", "import wavlink", marks=pytest.mark.slow),
        ("import wavlink", "from transformers.models.auto import modeling_auto"),
        pytest.param("import wavlink", f"import importlib.util; {FIND}('transformers')", marks=pytest.mark.slow),
    ],
)
def test_auto_classes_are_registered_in_any_order(first, second, wavlink_folder, tmp_path):
    done = in_process(AUTO.format(first=first, second=second), tmp_path, wavlink_folder)
    assert done.returncode == 0, done.stderr


def test_transformers_that_fails_to_import_is_registered_when_it_succeeds(tmp_path):
    """A loader that fails once is asked again, and the failure is the user's to see."""
    (tmp_path / "transformers.py").write_text("import os\nif 'FAIL' in os.environ: raise RuntimeError('not now')\n")
    done = in_process(
        """
        import os, sys
        import wavlink
        from processing import registration
        calls = []
        registration._register = lambda: calls.append(1)
        os.environ["FAIL"] = "1"
        try:
            import transformers
        except RuntimeError as error:
            assert "not now" in str(error)
        assert not calls and "transformers" not in sys.modules
        del os.environ["FAIL"]
        import transformers
        assert calls == [1]
        """,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["processing", "modeling_wavlink", "hub_cards"])
@pytest.mark.parametrize("as_file", [False, True])
def test_import_error_names_the_shadowing_path(name, as_file, tmp_path):
    shadow = tmp_path / f"{name}.py" if as_file else tmp_path / name / "__init__.py"
    shadow.parent.mkdir(exist_ok=True)
    shadow.write_text("mine = 1\n")
    done = in_process("import wavlink", tmp_path)
    assert done.returncode == 1
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("ImportError: wavlink cannot be imported") and str(tmp_path / name) in said, done.stderr
    mine = in_process(f"import {name}\ntry: import wavlink\nexcept ImportError: import {name}; {name}.mine", tmp_path)
    assert mine.returncode == 0, mine.stderr


def test_a_folder_called_processing_is_not_imported(tmp_path):
    (tmp_path / "processing").mkdir()
    done = in_process(f"import importlib.util, wavlink; print({FIND}('processing').origin)", tmp_path)
    assert Path(done.stdout.strip()) == Path(wavlink.__file__).parents[1] / "processing/__init__.py", done.stderr


@pytest.mark.slow
def test_a_folder_of_sounds_called_processing_shadows_nothing(tmp_path):
    (tmp_path / "processing").mkdir()
    soundfile.write(tmp_path / "processing/low.wav", tone(200), RATE)
    done = in_process("import wavlink; print(len(wavlink.load_audio('processing/low.wav')))", tmp_path)
    assert done.stdout == f"{RATE}\n", done.stderr


OWN_TRAIN = """
import sys
import wavlink

if __name__ == "__main__":
    model, data, output = sys.argv[1:]
    changes = {"max_steps": 1, "batch_size": 2, "num_workers": 0, "mixed_precision": "no", "label_prompt": ""}
    recipe = wavlink.load_recipe("quickstart", init=model, data=data, output_dir=output + "/run", **changes)
    folder = wavlink.train(recipe)
    import train

    assert train.__file__ == __file__ and (folder / "best/config.json").is_file()
"""


@pytest.mark.slow
def test_users_train_file_shadows_nothing(namespace, tmp_path):
    """`train.py` is what many call their own script that imports wavlink."""
    (tmp_path / "train.py").write_text(OWN_TRAIN)
    done = run_process(
        [sys.executable, tmp_path / "train.py", *namespace.values()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [["--help"], ["train", "--help"], ["classify", "x.wav", "--model", "m"]])
def test_python_m_wavlink_does_not_look_in_the_working_directory(command, tmp_path):
    for name in ("processing", "modeling_wavlink", "hub_cards", "train"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')\n")
    done = run_process(
        [sys.executable, "-m", "wavlink", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(wavlink.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert "the wrong one" not in done.stderr and "Traceback" not in done.stderr
    assert done.stdout.startswith("usage: wavlink") if "--help" in command else "--labels" in done.stderr


@pytest.mark.slow
def test_missing_module_is_named_with_its_extra(tmp_path):
    done = in_process("import sys; sys.modules['pyarrow'] = None; import wavlink; wavlink.Index", tmp_path)
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("ImportError: wavlink.Index cannot be used: pyarrow is not installed: pip install")
    assert "[search]" in said


def test_sounds_are_classified_as_by_the_command(namespace, model, processor):
    folder, low = namespace["model_folder"], namespace["sounds_folder"] / "low.wav"
    embedder = Embedder(str(folder))
    expected = wavlink.classify(embedder, [str(low)], LABELS)[0]["labels"]
    array = {"array": soundfile.read(low, dtype="float32")[0], "sampling_rate": RATE}
    for one in (low, str(low), low.read_bytes(), array, [low], (sound for sound in [low])):
        assert wavlink.classify(embedder, one, LABELS)[0]["labels"] == expected
    for loaded in (folder, str(folder), (model, processor)):
        options = {"processor": loaded[1]} if isinstance(loaded, tuple) else {}
        loaded = loaded[0] if options else loaded
        assert wavlink.classify(loaded, low, LABELS, **options)[0]["labels"] == expected
    assert wavlink.classify(embedder, low, LABELS, top_k=1)[0]["labels"] == expected[:1]
    assert len(wavlink.classify(embedder, namespace["sounds_folder"] / "train", LABELS)) == 4
    rows = wavlink.classify(embedder, [low, namespace["model_folder"] / "config.json"], LABELS)
    assert rows[0]["labels"] == expected and "cannot read" in rows[1]["error"]


@pytest.mark.parametrize(
    "sounds, options, said",
    [
        (np.zeros(RATE, np.float32), {}, "sampling_rate"),
        ([np.zeros(RATE, np.float32)], {}, "sampling_rate"),
        ([], {}, "no clips"),
        ("low.wav", {"labels": "dog"}, "list of strings"),
        ("low.wav", {"labels": ["dog"]}, "two labels"),
        ("low.wav", {"labels": [1, 2]}, "list of strings"),
        ("low.wav", {"prompts": "a sound"}, "where the label goes"),
        ("low.wav", {"dim": 7}, "nested dims"),
        ("low.wav", {"top_k": 0}, "top_k must be"),
        ("low.wav", {"clean_up": "all"}, "clean_up"),
        ("low.wav", {"device": "cpu"}, "leave these arguments out"),
    ],
)
def test_invalid_classifications_are_refused(sounds, options, said, wavlink_folder):
    options = {"labels": LABELS, **options}
    with pytest.raises(ValueError, match=said):
        wavlink.classify(Embedder(str(wavlink_folder)), sounds, **options)


def test_spans_are_those_of_the_command(namespace, model, processor, capsys):
    folder, low = namespace["model_folder"], namespace["sounds_folder"] / "low.wav"
    bell = namespace["sounds_folder"] / "test/bell.wav"
    command = f"{folder} {low} --query bell dog --by_sound {bell} --window 0.4 --hop 0.2 --json"
    localization.main(command.split())
    printed = [query["spans"] for query in json.loads(capsys.readouterr().out)["queries"]]
    options = {"window": 0.4, "hop": 0.2}
    embedder = Embedder(folder)
    found = wavlink.locate(embedder, low, ["bell", "dog"], by_sound=bell, **options)
    assert [[vars(span) for span in spans] for spans in found] == printed

    def alone(model, recording, query=(), **more):
        """Of one query: another batch of texts changes the last bits."""
        spans = wavlink.locate(model, recording, query, **options, **more)
        return [pytest.approx(vars(span), abs=1e-6) for span in spans]

    array = {"array": soundfile.read(low, dtype="float32")[0], "sampling_rate": RATE}
    for recording in (str(low), low.read_bytes(), array):
        assert printed[0] == alone(embedder, recording, "bell")
    assert printed[0] == alone(model, low, "bell", processor=processor)
    assert wavlink.locate(folder, low, by_sound=[bell], **options) == found[2:]


@pytest.mark.parametrize(
    "options, said",
    [
        ({}, "nothing to look for"),
        ({"query": ""}, "not empty"),
        ({"query": ["dog", 1]}, "not empty"),
        ({"query": "dog", "top_k": 0}, "top_k"),
        ({"query": "dog", "dim": 5}, "nested dims"),
        ({"query": "dog", "hop": 0}, "hop"),
        ({"query": "dog", "window": 31}, "over the 30 s"),
        ({"query": "dog", "by_sound": "nowhere.wav"}, "nowhere.wav does not exist"),
    ],
)
def test_invalid_locations_are_refused(options, said, namespace):
    with pytest.raises(ValueError, match=said):
        wavlink.locate(Embedder(namespace["model_folder"]), namespace["sounds_folder"] / "low.wav", **options)


def test_scores_are_those_of_the_command(namespace, model, processor, tmp_path):
    folder, sounds, output = namespace["model_folder"], namespace["sounds_folder"], tmp_path / "scores.json"
    evaluation.main(["--model", str(folder), "--benchmark", str(sounds), "--output", str(output)])
    expected = json.loads(output.read_text(encoding="utf-8"))
    as_json = lambda scores: json.loads(json.dumps(scores))  # noqa: E731
    assert as_json(wavlink.evaluate(str(folder), str(sounds))) == expected
    assert as_json(wavlink.evaluate(folder, sounds, output=tmp_path / "again.json")) == expected
    assert json.loads((tmp_path / "again.json").read_text(encoding="utf-8")) == expected
    for given in ((Embedder(folder), None), (model, processor)):
        scores = as_json(wavlink.evaluate(given[0], sounds, processor=given[1]))
        assert scores["about"] == expected["about"] and scores["protocol"] == expected["protocol"]
        for way in ("text_to_audio", "audio_to_text"):
            for dim, figures in expected[way].items():
                assert scores[way][dim]["R@1"]["value"] == pytest.approx(figures["R@1"]["value"])


@pytest.mark.parametrize(
    "options, said",
    [
        ({"benchmark": "esc5"}, "did you mean esc50"),
        ({"batch_size": 0}, "batch_size"),
        ({"model": Path(__file__).parent}, "has no config.json"),
        ({"split": "nowhere"}, "nowhere"),
        ({"prompts": "a sound"}, "where the label goes"),
        ({"processor": "x"}, "brings its own processor"),
    ],
)
def test_invalid_evaluations_are_refused(options, said, namespace):
    options = {"model": namespace["model_folder"], "benchmark": namespace["sounds_folder"], **options}
    with pytest.raises(ValueError, match=said):
        wavlink.evaluate(**options)


def test_evaluate_prints_nothing(namespace, capsys):
    wavlink.evaluate(namespace["model_folder"], namespace["sounds_folder"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"name": "quickstrat"}, "no recipe 'quickstrat'"),
        ({"learning_rat": 1}, "did you mean learning_rate"),
        ({"epochs": "3"}, "epochs must be int, got '3'"),
        ({"epochs": True}, "epochs must be int"),
        ({"compile": 1}, "compile must be bool"),
        ({"matryoshka_dims": ["8"]}, "matryoshka_dims must be a list of int"),
        ({"caption_columns": "caption"}, "caption_columns must be a list of str"),
        ({"mixture": ["a"]}, "mixture must be dict"),
        ({"regime": "all"}, "regime must be one of"),
    ],
)
def test_invalid_recipes_are_refused(changes, said):
    changes = {"name": "quickstart", **changes}
    with pytest.raises(ValueError, match=said):
        wavlink.load_recipe(changes.pop("name"), **changes)


def test_recipe_accepts_paths_lists_and_whole_numbers():
    recipe = wavlink.load_recipe(
        "quickstart", data=Path("a/b"), matryoshka_dims=[8, 4], learning_rate=1, output_dir="x"
    )
    assert (recipe.data, recipe.matryoshka_dims, recipe.learning_rate, recipe.output_dir) == ("a/b", (8, 4), 1.0, "x")
    assert type(recipe.learning_rate) is float
    assert wavlink.load_recipe("sounds", init="folder").pooling == ""


def test_only_a_recipe_is_trained():
    with pytest.raises(ValueError, match="load_recipe"):
        wavlink.train("quickstart")


def test_an_index_is_built_brought_up_to_date_and_opened(namespace):
    folder, sounds = namespace["output_folder"] / "index", namespace["sounds_folder"]
    with pytest.raises(ValueError, match="bundled model"):
        wavlink.Index.build(sounds / "train", folder, "no-such-model", progress=False)
    (sounds / "train/broken.wav").write_bytes(b"no sound")
    index = wavlink.Index.build(
        sounds / "train", folder, namespace["model_folder"], window=0.5, hop=0.25, progress=False
    )
    assert len(index) == 4 * 3 and [*index.skipped] == ["broken.wav"] and "cannot read" in index.skipped["broken.wav"]
    (sounds / "train/low.wav").unlink()
    assert len(wavlink.Index.build([sounds / "train"], folder, progress=False)) == 3 * 3
    index = wavlink.Index.open(folder, namespace["model_folder"])
    assert {hit.path for hit in index.query("a bell", top_k=9)} == {"bell.wav", "high.wav", "rain.wav"}
    with pytest.raises(ValueError, match="window"):
        wavlink.Index.build(sounds / "train", folder, window=0.7, progress=False)
