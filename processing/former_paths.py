"""Earlier import paths of modules that have moved. They go with the next minor version.

`import modeling_wavlink.search` gives the module `wavlink.search.command`, and `python -m modeling_wavlink.search`
runs its command, with `--json` in the shape it had then. New code imports from `wavlink`.
"""

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

MOVED = {
    "hub_cards.foreign_text": "wavlink.sanitize",
    "hub_cards.known": "hub_cards.published_facts",
    "hub_cards.measured": "hub_cards.scores",
    "hub_cards.record": "wavlink.hub_record",
    "hub_cards.upload": "wavlink.hub_upload",
    "modeling_wavlink.atomic_files": "wavlink.atomic_files",
    "modeling_wavlink.auto_classes": "processing.auto_classes",
    "modeling_wavlink.building": "wavlink.training.factory",
    "modeling_wavlink.checkpoints": "wavlink.training.checkpoints",
    "modeling_wavlink.classify": "wavlink.classification",
    "modeling_wavlink.cli": "wavlink.cli",
    "modeling_wavlink.common_sounds": "wavlink.common_sounds",
    "modeling_wavlink.compat": "wavlink.compat",
    "modeling_wavlink.cpu_kernels": "wavlink.backends.torch_cpu",
    "modeling_wavlink.destinations": "wavlink.destinations",
    "modeling_wavlink.embedder": "wavlink.embedder",
    "modeling_wavlink.embedding": "wavlink.evaluation.embed_split",
    "modeling_wavlink.evaluation": "wavlink.evaluation.command",
    "modeling_wavlink.grad_cache": "wavlink.training.grad_cache",
    "modeling_wavlink.index_copies": "wavlink.search.hub",
    "modeling_wavlink.index_model": "wavlink.search.index_model",
    "modeling_wavlink.indexing": "wavlink.search.build",
    "modeling_wavlink.long": "wavlink.long_recordings",
    "modeling_wavlink.made_ahead": "wavlink.prefetch",
    "modeling_wavlink.memory": "wavlink.training.memory",
    "modeling_wavlink.metrics": "wavlink.evaluation.metrics",
    "modeling_wavlink.multiple_choice": "wavlink.evaluation.multiple_choice",
    "modeling_wavlink.onnx_export": "wavlink.backends.onnx",
    "modeling_wavlink.peers": "wavlink.loading",
    "modeling_wavlink.pictures": "wavlink.plots",
    "modeling_wavlink.progress": "wavlink.progress",
    "modeling_wavlink.querying": "wavlink.search.index",
    "modeling_wavlink.ray_embedding": "wavlink.search.ray",
    "modeling_wavlink.recipes": "wavlink.training.recipes",
    "modeling_wavlink.regimes": "wavlink.training.finetuning",
    "modeling_wavlink.retrieval": "wavlink.evaluation.retrieval",
    "modeling_wavlink.run_folder": "wavlink.training.run_folder",
    "modeling_wavlink.scoring": "wavlink.evaluation.protocol",
    "modeling_wavlink.search": "wavlink.search.command",
    "modeling_wavlink.sharding": "wavlink.training.distributed",
    "modeling_wavlink.sound_map": "wavlink.search.map",
    "modeling_wavlink.sound_page": "wavlink.search.map_page",
    "modeling_wavlink.sweep": "wavlink.training.sweep",
    "modeling_wavlink.trainer": "wavlink.training.trainer",
    "modeling_wavlink.zero_shot": "wavlink.evaluation.zero_shot",
    "processing.air_bench": "processing.datasets.air_bench",
    "processing.batch_plan": "processing.sampling",
    "processing.benchmark_data": "processing.datasets.benchmarks",
    "processing.caption_table": "processing.datasets.caption_store",
    "processing.captions": "processing.datasets.caption_tables",
    "processing.cells": "processing.datasets.cells",
    "processing.clip_files": "processing.datasets.youtube_ids",
    "processing.compat_datasets": "processing.datasets.compat_datasets",
    "processing.durations": "processing.datasets.durations",
    "processing.feeds": "processing.datasets.loaders",
    "processing.fingerprints": "processing.datasets.fingerprints",
    "processing.folder_form": "processing.datasets.folder_form",
    "processing.folders": "processing.datasets.audiofolder",
    "processing.kept_seconds": "processing.datasets.kept_durations",
    "processing.mixture": "processing.datasets.mixture",
    "processing.paper_data": "processing.datasets.paper",
    "processing.shard_reader": "processing.datasets.shard_reader",
    "processing.shards": "processing.datasets.shards",
    "processing.sources": "wavlink.search.listing",
    "processing.streaming": "processing.datasets.streaming",
    "processing.synthetic": "processing.datasets.synthetic",
}
# Earlier names in these modules, and the module and name that have them now.
RENAMED = {
    "hub_cards.upload": {"without_token": "wavlink.hub_errors:without_token"},
    "modeling_wavlink.cli": {
        "code_of": "wavlink.console:code_of",
        "on_stop_signals": "wavlink.console:on_stop_signals",
        "signals_as_interrupts": "wavlink.console:signals_as_interrupts",
        "stdout_for": "wavlink.console:stdout_for",
    },
    "modeling_wavlink.index_copies": {"reindex": "wavlink.search.copies:reindex"},
    "modeling_wavlink.long": {
        "hear": "wavlink.long_recordings:encode_recording",
        "main": "wavlink.localization:main",
        "run": "wavlink.localization:run",
    },
    "modeling_wavlink.made_ahead": {"made_ahead": "wavlink.prefetch:prefetch"},
    "processing.paper_data": {"Report": "processing.datasets.report:ClipReport"},
}
# The module whose `main` `python -m` runs, where it is another one.
COMMANDS = {"modeling_wavlink.long": "wavlink.localization"}


class _FormerPaths:
    """A finder and loader of modules by their earlier names: the very modules that have moved."""

    def __init__(self):
        self._specs = {}

    def find_spec(self, fullname: str, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(MOVED[spec.name])
        for former, name in RENAMED.get(spec.name, {}).items():
            home, _, name = name.partition(":")
            setattr(module, former, getattr(importlib.import_module(home), name))
        self._specs[spec.name] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is run again; the module keeps the spec of its own name."""
        module.__spec__ = self._specs[module.__spec__.name]

    def get_code(self, fullname: str) -> CodeType:
        """For `python -m`, which runs it with `__spec__` that of the earlier name."""
        return _run_former_command.__code__


def _run_former_command():
    import importlib
    import sys

    from processing.former_paths import COMMANDS, MOVED

    former = __spec__.name  # noqa: F821  of the module that it is run as
    main = importlib.import_module(COMMANDS.get(former, MOVED[former])).main
    run_command = importlib.import_module("wavlink.console").run_command
    sys.exit(main(wrap_json=False) if former == "modeling_wavlink.cli" else run_command(former, main))


def install() -> None:
    """Make the earlier paths importable."""
    if not any(isinstance(finder, _FormerPaths) for finder in sys.meta_path):
        sys.meta_path.append(_FormerPaths())
