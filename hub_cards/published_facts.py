"""Facts on a card that others have published: addresses of data, licences, and the paper's figures."""

from dataclasses import dataclass

from wavlink.defaults import SIZES as SIZES
from wavlink.training.recipes import get_recipe


@dataclass(frozen=True)
class Data:
    """Training data of a recipe; `hub` is its Hub id, if the training split is on the Hub."""

    hub: str
    url: str
    licence: str


_YOUTUBE = "the sounds are YouTube's and are not part of it"
DATA = {
    "auto_acd": Data("Loie/Auto-ACD", "", f"none stated on its card; {_YOUTUBE}"),
    "audiosetcaps": Data("baijs/AudioSetCaps", "", f"captions CC-BY-4.0; {_YOUTUBE}"),
    "audiocaps": Data("OpenSound/AudioCaps", "", "see its card"),
    "clotho": Data("", "https://zenodo.org/records/4783391", "see its record"),
    "synthetic": Data("", "", "made by this project's code"),
}
ENGLISH = tuple(DATA)  # all of these have English captions

BENCHMARK_IDS = {
    "audiocaps": "OpenSound/AudioCaps",
    "clotho": "mteb/Clotho",
    "esc50": "mteb/esc50",
    "us8k": "mteb/urbansound8K",
    "vggsound": "mteb/VGGSound",
    "airbench": "qyang1021/AIR-Bench-Dataset",
}

_NO_LICENCE = "none stated with the weights; the code of openai/CLIP is MIT"
TOWER_LICENCES = {  # as their cards on the Hub have them
    "openai/whisper-tiny.en": "Apache-2.0",
    "openai/whisper-base.en": "Apache-2.0",
    "openai/whisper-small.en": "Apache-2.0",
    "openai/whisper-large-v3": "Apache-2.0",
    "openai/clip-vit-base-patch32": _NO_LICENCE,
    "openai/clip-vit-large-patch14": _NO_LICENCE,
    "answerdotai/ModernBERT-large": "Apache-2.0",
    "sentence-transformers/all-MiniLM-L6-v2": "Apache-2.0",
    "laion/clap-htsat-unfused": "Apache-2.0",
}

# arXiv 2601.15118: R@1 / R@5 / R@10 at full width, and the change at an eighth of the dims; zero-shot accuracy.
PAPER_COLUMNS = ("AudioCaps text → audio", "AudioCaps audio → text", "Clotho text → audio", "Clotho audio → text")
PAPER_RETRIEVAL = {
    "large": {
        768: ("46.7 / 80.2 / 89.5", "60.0 / 85.3 / 92.6", "22.4 / 48.7 / 62.6", "27.4 / 52.3 / 66.0"),
        96: ("-0.3 / +0.1 / +0.1", "-1.4 / -0.3 / 0.0", "-0.6 / -0.2 / -0.3", "0.0 / +0.1 / +0.6"),
    },
    "small": {
        512: ("44.5 / 79.0 / 88.0", "54.3 / 84.1 / 92.3", "21.2 / 46.8 / 60.1", "25.3 / 49.4 / 64.0"),
        64: ("-0.6 / -0.3 / -0.1", "+0.2 / +0.4 / +0.4", "+0.2 / -0.7 / +0.1", "+0.4 / +0.1 / -1.1"),
    },
    "base": {
        512: ("39.7 / 74.5 / 85.3", "50.5 / 79.4 / 90.3", "17.6 / 41.3 / 56.0", "21.1 / 45.8 / 58.8"),
        64: ("-0.1 / -0.6 / +0.1", "-0.6 / +0.5 / -0.6", "-0.5 / 0.0 / -0.2", "-1.0 / -0.6 / -0.4"),
    },
}
PAPER_ZERO_SHOT = {  # VGGSound, UrbanSound8K, ESC-50
    "large": ("31.7", "74.5", "83.0"),
    "small": ("31.8", "75.0", "80.3"),
    "base": ("27.7", "69.9", "75.4"),
}


def towers_of(size: str) -> tuple[str, str]:
    """Return the Hub ids of the paper's audio and text tower."""
    recipe = get_recipe(f"{size}_stage1")
    return recipe.audio_model, recipe.text_model
