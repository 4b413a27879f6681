"""The training runs on a card: the recipe of each stage, the machine, the hours, and the published files."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from wavlink.bundled_models import name_of, names
from wavlink.sanitize import clean, escape, last_part, without_paths
from wavlink.training.run_folder import SOURCES

from .published_facts import DATA, TOWER_LICENCES

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_SHIPPED_FACTS = ("step", "processes", "python", "packages", "processor", "cpus", "threads", "devices", "seconds")


@dataclass
class Stage:
    """A training run: its `recipe.json`, and the lines of `environment.jsonl` and `metrics.jsonl`."""

    recipe: dict
    environment: list[dict]
    metrics: list[dict]

    def hub_id(self, source: str) -> str | None:
        """Return the Hub id of a recipe's source; None for a folder, whose name may look like an id.

        The run has recorded which sources were folders. If it has not, only well-known ids are returned.
        """
        if source in DATA:
            return DATA[source].hub or None
        folders = [line["on_disk"] for line in self.environment if "on_disk" in line]
        if folders and _HUB_ID.fullmatch(source):
            return None if any(source in sources for sources in folders) else source
        return source if source in TOWER_LICENCES else None

    def name(self, source: str) -> str:
        """Return the name of a source on a card; of a local path the last name."""
        known = self.hub_id(source) or (source if source in DATA else None)
        bundled = name_of(source)
        if bundled in names() and not any(source in line.get("on_disk", ()) for line in self.environment):
            known = f"{bundled} (bundled with wavlink)"
        return clean(known or f"{last_part(source)} (local)")

    def data(self) -> dict[str, float]:
        """Return the weight of each data set."""
        recipe = self.recipe
        return recipe.get("mixture") or ({recipe["data"]: 1.0} if recipe.get("data") else {})

    def towers(self) -> list[str]:
        """Return the models that the run started from."""
        recipe = self.recipe
        if recipe.get("init"):
            return [recipe["init"]]
        return [recipe[name] for name in ("audio_model", "text_model") if recipe.get(name)]


def stages(run: Path | None) -> list[Stage]:
    """Return the stages that led to `run`, the first one first, as far as their folders exist."""
    runs = []
    while run is not None and (run / "recipe.json").is_file() and len(runs) < 9:
        recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
        runs.insert(0, Stage(recipe, _lines(run / "environment.jsonl"), _lines(run / "metrics.jsonl")))
        before = Path(recipe.get("init") or "").parent
        run = before if recipe.get("init") and before != run else None
    return runs


def _lines(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def base_models(stages: list[Stage]) -> list[str]:
    """Return the Hub ids that the first stage started from."""
    return [known for tower in stages[0].towers() if (known := stages[0].hub_id(tower))] if stages else []


def data_ids(stages: list[Stage]) -> list[str]:
    """Return the Hub ids of the training data."""
    ids = [known for stage in stages for source in stage.data() if (known := stage.hub_id(source))]
    return list(dict.fromkeys(ids))


def rows(stage: Stage, before: Stage | None = None, start: str = "") -> list[list[str]]:
    """Return the table of a stage: its data, its start and its settings.

    Args:
        before: the stage before it.
        start: names the bundled model that the first stage started from, if it is one.
    """
    recipe = without_paths(stage.recipe)
    facts = {
        "recipe": recipe.get("name"),
        "data": ", ".join(_weighted(stage)) + (f", split {recipe['train_split']}" if "train_split" in recipe else ""),
        "started from": "the stage before" if before else start or _start(stage),
        "trained": _trained(recipe),
        "loss": _loss(recipe),
        "clips": _clips(recipe),
        "budget": _budget(stage),
        "optimizer": _optimizer(recipe),
        "seed": recipe.get("seed"),
        "software": _software(stage),
    }
    return [[title, escape(value, 500)] for title, value in facts.items() if value not in (None, "")]


def _weighted(stage: Stage) -> list[str]:
    weights = stage.data()
    alone = len(weights) == 1
    return [stage.name(source) + ("" if alone else f" × {weight:g}") for source, weight in weights.items()]


def _start(stage: Stage) -> str:
    if stage.recipe.get("init") and not stage.hub_id(stage.recipe["init"]):
        return "a local WavLink, whose own training is not known here"
    return " and ".join(map(stage.name, stage.towers())) or "random weights"


def _trained(recipe: dict) -> str:
    learning = {
        "full": "all weights of ",
        "lora": f"LoRA of rank {recipe.get('lora_rank')} in ",
        "projector": "neither tower",
    }
    towers = {"audio": "the audio tower", "both": "both towers"}
    regime, scope = recipe.get("regime"), recipe.get("scope")
    if regime not in learning or scope not in towers:
        return ""
    token = f"; the new token starts from {recipe['token_start']}" if _new_token(recipe) else ""
    return learning[regime] + ("" if regime == "projector" else towers[scope]) + f"; projections and scale{token}"


def _new_token(recipe: dict) -> bool:
    return not recipe.get("init") and recipe.get("pooling") != "mean" and bool(recipe.get("token_start"))


def _loss(recipe: dict) -> str:
    parts = [recipe.get("loss_type", "")]
    parts += [f"label smoothing {recipe['label_smoothing']:g}"] if recipe.get("label_smoothing") else []
    parts += ["all captions of a clip"] if recipe.get("all_captions") else []
    parts += ["clips that share a caption are no negatives"] if recipe.get("mask_false_negatives") else []
    return ", ".join(filter(None, parts))


def _clips(recipe: dict) -> str:
    padding = {"longest": "native length", "max_length": "padded to 30 s"}.get(recipe.get("padding"), "")
    most = f"crops of at most {recipe['max_seconds']:g} s" if "max_seconds" in recipe else ""
    return ", ".join(filter(None, (padding, most)))


def _budget(stage: Stage) -> str:
    steps = max((line["step"] for line in stage.metrics), default=stage.recipe.get("max_steps") or None)
    epochs = "" if stage.recipe.get("max_steps") else f"{stage.recipe.get('epochs')} epochs"
    parts = [f"batches of {stage.recipe.get('batch_size')} clips", f"{steps} steps" if steps else "", epochs]
    return ", ".join(filter(None, parts))


def _optimizer(recipe: dict) -> str:
    names = {
        "learning_rate": "learning rate",
        "warmup_ratio": "warm-up over a share of",
        "weight_decay": "weight decay",
        "max_grad_norm": "gradients clipped to",
    }
    parts = [f"{words} {recipe[name]:g}" for name, words in names.items() if name in recipe]
    return ", ".join(["AdamW with a cosine schedule", *parts, f"precision {recipe.get('mixed_precision')}"])


def hours(stage: Stage) -> str:
    """Return the wall time of a run; "" if the run has not recorded it."""
    seconds = [line["seconds"] for line in stage.environment if "seconds" in line]
    starts = sum("python" in line for line in stage.environment)
    if not seconds:
        return ""
    return ("" if len(seconds) >= starts else "at least ") + f"{sum(seconds) / 3600:.2f} hours"


def machine(stage: Stage) -> str:
    """Return the processors of a run; "" if the run has not recorded them."""
    facts = next((line for line in reversed(stage.environment) if "python" in line), None)
    if facts is None:
        return ""
    devices = facts.get("devices") or []
    names = " and ".join(f"{devices.count(name)} x {name}" for name in dict.fromkeys(devices))
    processors = names or f"{facts.get('cpus')} CPU cores ({facts.get('processor')}), no GPU"
    shares = [(facts.get("processes", 1), "process", "es"), (facts.get("threads"), "thread", "s each")]
    if names:
        shares.pop()  # the work is the devices'
    return ", ".join([processors, *(f"{n} {word}{end if n != 1 else ''}" for n, word, end in shares if n)])


def _software(stage: Stage) -> str:
    facts = next((line for line in reversed(stage.environment) if "packages" in line), None)
    if facts is None:
        return ""
    names = ("torch", "transformers", "accelerate", "peft")
    return ", ".join(f"{name} {facts['packages'][name]}" for name in names if name in facts["packages"])


def ship(stages: list[Stage], folder: Path) -> list[str]:
    """Write the files behind the card's figures, without paths, one folder for each stage; return their names."""
    names = []
    for number, stage in enumerate(stages, 1):
        part = Path("training") / (f"stage{number}" if len(stages) > 1 else "")
        (folder / part).mkdir(parents=True, exist_ok=True)
        environment = [{name: line[name] for name in _SHIPPED_FACTS if name in line} for line in stage.environment]
        lines = "".join(json.dumps(without_paths(line)) + "\n" for line in stage.metrics)
        texts = {"recipe.json": _json(public_recipe(stage)), "environment.json": _json(without_paths(environment))}
        for name, text in (texts | ({"metrics.jsonl": lines} if lines else {})).items():
            (folder / part / name).write_text(text, encoding="utf-8")
            names.append((part / name).as_posix())
    return names


def public_recipe(stage: Stage) -> dict:
    """Return a recipe with names instead of local paths, and without fields of this machine alone."""
    recipe = {name: value for name, value in stage.recipe.items() if name not in ("output_dir", "audio_folder")}
    recipe |= {name: stage.name(recipe[name]) for name in SOURCES if recipe.get(name)}
    if recipe.get("mixture"):
        recipe["mixture"] = [[stage.name(source), weight] for source, weight in recipe["mixture"].items()]
    return without_paths(recipe)


def _json(value) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
