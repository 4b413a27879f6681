"""What a card tells of a training run: each stage's recipe, the machine, the hours, and what is shipped of it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from wavlink.sanitize import clean, escape, last_part, without_paths
from wavlink.training.run_folder import SOURCES

from .published_facts import DATA, TOWER_LICENCES

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_SHIPPED_FACTS = ("step", "processes", "python", "packages", "processor", "cpus", "threads", "devices", "seconds")


@dataclass
class Stage:
    """One run of `train.py`: `recipe.json`, the lines of `environment.jsonl` and of `metrics.jsonl`."""

    recipe: dict
    environment: list[dict]
    metrics: list[dict]

    def hub_id(self, source: str) -> str | None:
        """The Hub id that a recipe's source is, or None: a folder, whose name may look like an id, is none.

        The run noted which sources were folders. Of one that did not only well-known ids are believed.
        """
        if source in DATA:
            return DATA[source].hub or None
        noted = [line["on_disk"] for line in self.environment if "on_disk" in line]
        if noted and _HUB_ID.fullmatch(source):
            return None if any(source in sources for sources in noted) else source
        return source if source in TOWER_LICENCES else None

    def name(self, source: str) -> str:
        """How a card calls a source: a local path by its last name."""
        known = self.hub_id(source) or (source if source in DATA else None)
        return clean(known or f"{last_part(source)} (local)")

    def data(self) -> dict[str, float]:
        recipe = self.recipe
        return recipe.get("mixture") or ({recipe["data"]: 1.0} if recipe.get("data") else {})

    def towers(self) -> list[str]:
        recipe = self.recipe
        if recipe.get("init"):
            return [recipe["init"]]
        return [recipe[name] for name in ("audio_model", "text_model") if recipe.get(name)]


def stages(run: Path | None) -> list[Stage]:
    """The stages that led to `run`, the first one first, as far as their folders are still there."""
    found = []
    while run is not None and (run / "recipe.json").is_file() and len(found) < 9:
        recipe = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
        found.insert(0, Stage(recipe, _lines(run / "environment.jsonl"), _lines(run / "metrics.jsonl")))
        before = Path(recipe.get("init") or "").parent
        run = before if recipe.get("init") and before != run else None
    return found


def _lines(path: Path) -> list[dict]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def base_models(found: list[Stage]) -> list[str]:
    """The Hub ids that the first stage started from."""
    return [known for tower in found[0].towers() if (known := found[0].hub_id(tower))] if found else []


def data_ids(found: list[Stage]) -> list[str]:
    ids = [known for stage in found for source in stage.data() if (known := stage.hub_id(source))]
    return list(dict.fromkeys(ids))


def rows(stage: Stage, before: Stage | None = None) -> list[list[str]]:
    """A recipe for a reader: what it trained on, from what, and how."""
    recipe = without_paths(stage.recipe)
    told = {
        "recipe": recipe.get("name"),
        "data": ", ".join(_weighted(stage)) + (f", split {recipe['train_split']}" if "train_split" in recipe else ""),
        "started from": "the stage before" if before else _start(stage),
        "trained": _trained(recipe),
        "loss": _loss(recipe),
        "clips": _heard(recipe),
        "budget": _budget(stage),
        "optimizer": _optimizer(recipe),
        "seed": recipe.get("seed"),
        "software": _software(stage),
    }
    return [[title, escape(value, 500)] for title, value in told.items() if value not in (None, "")]


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


def _heard(recipe: dict) -> str:
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
    """How long the run took by the clock; empty where the run did not note it."""
    noted = [line["seconds"] for line in stage.environment if "seconds" in line]
    starts = sum("python" in line for line in stage.environment)
    if not noted:
        return ""
    return ("" if len(noted) >= starts else "at least ") + f"{sum(noted) / 3600:.2f} hours"


def machine(stage: Stage) -> str:
    facts = next((line for line in reversed(stage.environment) if "python" in line), None)
    if facts is None:
        return ""
    devices = facts.get("devices") or []
    names = " and ".join(f"{devices.count(name)} x {name}" for name in dict.fromkeys(devices))
    here = names or f"{facts.get('cpus')} CPU cores ({facts.get('processor')}), no GPU"
    shares = [(facts.get("processes", 1), "process", "es"), (facts.get("threads"), "thread", "s each")]
    if names:
        shares.pop()  # the work is the devices'
    return ", ".join([here, *(f"{n} {word}{end if n != 1 else ''}" for n, word, end in shares if n)])


def _software(stage: Stage) -> str:
    facts = next((line for line in reversed(stage.environment) if "packages" in line), None)
    if facts is None:
        return ""
    names = ("torch", "transformers", "accelerate", "peft")
    return ", ".join(f"{name} {facts['packages'][name]}" for name in names if name in facts["packages"])


def ship(found: list[Stage], folder: Path) -> list[str]:
    """Writes what the card's figures come from, without paths, and returns the files' names, a stage a folder."""
    names = []
    for number, stage in enumerate(found, 1):
        place = Path("training") / (f"stage{number}" if len(found) > 1 else "")
        (folder / place).mkdir(parents=True, exist_ok=True)
        environment = [{name: line[name] for name in _SHIPPED_FACTS if name in line} for line in stage.environment]
        lines = "".join(json.dumps(without_paths(line)) + "\n" for line in stage.metrics)
        texts = {"recipe.json": _json(public_recipe(stage)), "environment.json": _json(without_paths(environment))}
        for name, text in (texts | ({"metrics.jsonl": lines} if lines else {})).items():
            (folder / place / name).write_text(text, encoding="utf-8")
            names.append((place / name).as_posix())
    return names


def public_recipe(stage: Stage) -> dict:
    """The recipe with the names of local folders, and without what only this machine knew."""
    recipe = {name: value for name, value in stage.recipe.items() if name not in ("output_dir", "audio_folder")}
    recipe |= {name: stage.name(recipe[name]) for name in SOURCES if recipe.get(name)}
    if recipe.get("mixture"):
        recipe["mixture"] = [[stage.name(source), weight] for source, weight in recipe["mixture"].items()]
    return without_paths(recipe)


def _json(value) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
