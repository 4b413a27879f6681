"""transformers' own common tests, out of the source package of the installed version.

```
python tests/common/sources.py FOLDER
```

downloads that package, keeps its common tests in `FOLDER/<version>`, and prints that folder.
"""

import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import types
from importlib.metadata import version
from pathlib import Path

PACKAGE = "transformers_tests"
VARIABLE = "WAVLINK_COMMON_TESTS"

# What the common tests import and the source package leaves out: the mixins of other suites, and the values that
# `ConfigTester` gives a config that has no sub-configs.
_LEFT_OUT = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {
        "config_common_kwargs": {
            "return_dict": False,
            "output_hidden_states": True,
            "output_attentions": True,
            "dtype": "float16",
            "chunk_size_feed_forward": 5,
            "architectures": ["BertModel"],
            "id2label": {0: "label"},
            "label2id": {"label": "0"},
            "problem_type": "regression",
        }
    },
}


def download(cache: Path) -> Path:
    """The folder of the installed version's `test_*.py`, downloaded by pip where it is not in `cache` yet."""
    installed = version("transformers")
    folder = cache / installed
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as workplace:
        options = ["--no-deps", "--no-binary", "transformers", "--dest", workplace]
        subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, f"transformers=={installed}"],
            check=True,
            stdout=sys.stderr,
        )
        (archive,) = Path(workplace).glob("transformers-*.tar.gz")
        unpacked = Path(workplace) / "tests"
        unpacked.mkdir()
        (unpacked / "__init__.py").touch()  # left out too, and executed by one of them
        with tarfile.open(archive) as package:
            for member in package:
                parts = Path(member.name).parts
                if len(parts) == 3 and parts[1] == "tests" and parts[2].endswith(".py") and member.isfile():
                    (unpacked / parts[2]).write_bytes(package.extractfile(member).read())
        os.replace(unpacked, folder)
    return folder


def load(name: str) -> types.ModuleType:
    """A module of the downloaded tests, such as `test_modeling_common`."""
    if PACKAGE not in sys.modules:
        package = types.ModuleType(PACKAGE)
        package.__path__ = [os.environ[VARIABLE]]
        sys.modules[PACKAGE] = package
        for path, names in _LEFT_OUT.items():
            parent = f"{PACKAGE}.{path.split('.')[0]}"
            sys.modules[parent] = types.ModuleType(parent)
            sys.modules[parent].__path__ = []
            module = types.ModuleType(f"{PACKAGE}.{path}")
            vars(module).update(names)
            sys.modules[module.__name__] = module
        hub = types.ModuleType("fetch_hub_objects_for_ci")  # of a folder beside `tests`
        hub.url_to_local_path = lambda url: url
        sys.modules[hub.__name__] = hub
    return importlib.import_module(f"{PACKAGE}.{name}")


if __name__ == "__main__":
    print(download(Path(sys.argv[1]).resolve()))
