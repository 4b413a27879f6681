"""A WavLink for six languages: Whisper beside an XLM-R, trained by `wavlink train` and scored in each language.

    python examples/multilingual.py FOLDER --audio_model openai/whisper-tiny.en --out runs/multilingual

FOLDER holds train, validation and test, each with a `metadata.csv`: file_name, label and an English caption. Captions
in other languages are made here: the labels of LABELS in six languages, and, for speech, the transcript (the quotation
that ends an English caption), in its language. The XLM-R starts from random weights and a tokenizer made from these
texts, so it knows the words of its training data alone; a pretrained one is `--text_model
FacebookAI/xlm-roberta-base`. Other options are those of `wavlink train`.
"""

import argparse
import csv
import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizer

from wavlink import Embedder

PROMPTS = {
    "en": "This is a sound of {}.",
    "de": "Ein Geräusch: {}.",
    "fr": "Un son : {}.",
    "es": "Un sonido: {}.",
    "ru": "Звук: {}.",
    "zh": "这是{}的声音。",
}
LABELS = """
explosion|Explosion|explosion|explosión|взрыв|爆炸
monster growl|Knurren eines Monsters|grognement de monstre|gruñido de monstruo|рычание монстра|怪物的咆哮
sword|Schwert|épée|espada|меч|剑
metal clang|Scheppern von Metall|choc métallique|golpe metálico|лязг металла|金属碰撞
laugh|Lachen|rire|risa|смех|笑
pain grunt|Stöhnen vor Schmerz|gémissement de douleur|quejido de dolor|стон боли|痛苦的呻吟
keyboard typing|Tippen auf einer Tastatur|frappe au clavier|tecleo|печатание на клавиатуре|键盘打字
water splash|Platschen von Wasser|éclaboussure|chapoteo|всплеск воды|水花
footsteps|Schritte|bruits de pas|pasos|шаги|脚步
notification chime|Benachrichtigungston|carillon de notification|aviso de notificación|сигнал уведомления|通知提示
fire crackle|Knistern von Feuer|crépitement du feu|crepitar del fuego|треск огня|火的噼啪
bow and arrow|Pfeil und Bogen|arc et flèche|arco y flecha|лук и стрела|弓箭
stone hit|Schlag auf Stein|coup sur la pierre|golpe en piedra|удар по камню|石头撞击
hammering|Hämmern|coups de marteau|martilleo|стук молотка|锤打
gunshot|Schuss|coup de feu|disparo|выстрел|枪响
bird song|Vogelgesang|chant d'oiseau|canto de pájaro|пение птиц|鸟鸣
engine|Motor|moteur|motor|двигатель|发动机
video game music|Videospielmusik|musique de jeu vidéo|música de videojuego|музыка из видеоигры|电子游戏音乐
piano|Klavier|piano|piano|фортепиано|钢琴
electronic music|elektronische Musik|musique électronique|música electrónica|электронная музыка|电子音乐
bass drum|große Trommel|grosse caisse|bombo|большой барабан|大鼓
violin|Geige|violon|violín|скрипка|小提琴
choir|Chor|chœur|coro|хор|合唱
folk music|Volksmusik|musique folklorique|música folclórica|народная музыка|民间音乐
electric guitar|E-Gitarre|guitare électrique|guitarra eléctrica|электрогитара|电吉他
trumpet|Trompete|trompette|trompeta|труба|小号
drum beat|Trommelrhythmus|rythme de batterie|ritmo de batería|барабанный ритм|鼓点
snare drum|kleine Trommel|caisse claire|caja|малый барабан|小军鼓
English speech|Englisch|anglais|inglés|английская речь|英语
Dutch speech|Niederländisch|néerlandais|neerlandés|нидерландская речь|荷兰语
Russian speech|Russisch|russe|ruso|русская речь|俄语
Czech speech|Tschechisch|tchèque|checo|чешская речь|捷克语
Spanish speech|Spanisch|espagnol|español|испанская речь|西班牙语
French speech|Französisch|français|francés|французская речь|法语
Mandarin Chinese speech|Hochchinesisch|chinois mandarin|chino mandarín|китайская речь|普通话
Italian speech|Italienisch|italien|italiano|итальянская речь|意大利语
Catalan speech|Katalanisch|catalan|catalán|каталанская речь|加泰罗尼亚语
Ukrainian speech|Ukrainisch|ukrainien|ucraniano|украинская речь|乌克兰语
Greek speech|Griechisch|grec|griego|греческая речь|希腊语
Danish speech|Dänisch|danois|danés|датская речь|丹麦语
"""
WORDS = {row.split("|")[0]: dict(zip(PROMPTS, row.split("|"), strict=True)) for row in LABELS.split("\n") if row}
SAID = "caption_said"


def texts_of(row: dict) -> dict[str, str]:
    """Return the new columns of a row with English captions; "" where there is no text."""
    words = WORDS.get(row["label"])
    quotation = re.search(r': "(.+)"$', row["caption"] or "")
    labels = {f"caption_{name}": PROMPTS[name].format(words[name]) if words else "" for name in PROMPTS}
    return {**labels, SAID: quotation[1] if quotation else ""}


def write_split(source: Path, out: Path) -> list[dict]:
    """Write links to a split's sounds and its new columns to `out`; return the rows, with the sound's path."""
    out.mkdir(parents=True, exist_ok=True)
    with open(source / "metadata.csv", newline="", encoding="utf-8") as file:
        rows = [{**row, **texts_of(row)} for row in csv.DictReader(file)]
    for number, row in enumerate(rows):
        sound = (source / row["file_name"]).resolve()
        link = out / f"{number:06d}{sound.suffix}"  # metadata may name no file outside its folder
        link.unlink(missing_ok=True)
        link.symlink_to(sound)
        row["file_name"] = link.name
    with open(out / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return [{**row, "file": str(out / row["file_name"])} for row in rows]


def new_xlm_r(captions: list[str], folder: Path, width: int = 256, seed: int = 0) -> None:
    """Save a small XLM-R with random weights, and a tokenizer of its kind made from `captions`."""
    tokenizer = XLMRobertaTokenizer().train_new_from_iterator(captions, vocab_size=8000, show_progress=False)
    config = XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=4 * width,
        max_position_embeddings=130,  # 128 tokens: positions begin after pad_token_id
        initializer_range=width**-0.5,  # the default 0.02 is for wide towers; this one would learn slowly
    )
    torch.manual_seed(seed)
    XLMRobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "1_Pooling").mkdir(exist_ok=True)  # sentence-transformers' way to say how a tower is pooled
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))


def mean(values: np.ndarray) -> dict:
    """Return the mean over clips and its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    means = [rng.choice(values, len(values)).mean() for _ in range(1000)]
    return {"value": float(values.mean()), "interval": np.percentile(means, [2.5, 97.5]).tolist()}


def score(embedder: Embedder, rows: list[dict]) -> dict:
    """Return zero-shot accuracy in each language, and the recall of transcripts to clips, by the clip's language."""
    embedded = zip(rows, embedder.embed_files([row["file"] for row in rows]), strict=True)
    clips = [(row, vector) for row, vector in embedded if not isinstance(vector, ValueError)]  # those that can be read
    named = [row["label"] for row, _ in clips if row["label"] in WORDS]
    sounds = np.stack([vector for row, vector in clips if row["label"] in WORDS])  # (clips, dims)
    labels = sorted({*named})
    scores = {"clips": len(named), "chance": 1 / len(labels), "zero_shot": {}}
    for language, prompt in PROMPTS.items():
        texts = embedder.embed_text([prompt.format(WORDS[label][language]) for label in labels])
        nearest = (sounds @ texts.T).argmax(1)
        scores["zero_shot"][language] = mean(np.array([labels[n] for n in nearest]) == np.array(named))
    spoken = [(row, vector) for row, vector in clips if row[SAID]]
    if len({row[SAID] for row, _ in spoken}) >= 2:  # one phrase cannot be searched
        scores["said"] = recall(embedder, [row for row, _ in spoken], np.stack([vector for _, vector in spoken]))
    return scores


def recall(embedder: Embedder, rows: list[dict], sounds: np.ndarray) -> dict:
    """Return R@10 of each clip's transcript among all clips; every clip that says the same is right."""
    said = np.array([row[SAID] for row in rows])
    first = (-embedder.embed_text(list(said)) @ sounds.T).argsort(1)[:, :10]
    hits = (said[first] == said[:, None]).any(1)
    total, same = len(said), Counter(said)
    missed = [math.comb(total - same[text], 10) / math.comb(total, 10) if total > 10 else 0 for text in said]
    scores = {"clips": total, "chance": 1 - float(np.mean(missed)), "all": mean(hits)}
    languages = np.array([row.get("language", "") for row in rows])
    for name, count in Counter(language for language in languages if language).most_common(8):
        chance = min(1, 10 / count)  # of a model that knows the language alone
        scores[str(name)] = {**mean(hits[languages == name]), "language alone": chance}
    return scores


def percent(score: dict) -> str:
    """Format a score and its interval."""
    value, low, high = (f"{100 * x:.1f}" for x in (score["value"], *score["interval"]))
    return f"{value} [{low}, {high}]"


def show(scores: dict) -> None:
    """Print the scores."""
    print(f"zero-shot, {scores['clips']} clips, chance level {100 * scores['chance']:.1f}:")
    print(*(f"  {name}  {percent(x)}" for name, x in scores["zero_shot"].items()), sep="\n")
    said = scores.get("said")
    if not said:
        return
    print(f"transcript -> its clip, R@10, {said['clips']} clips, chance level {100 * said['chance']:.1f}:")
    for name, x in [item for item in said.items() if item[0] not in ("clips", "chance")]:
        known = f", from the language alone {100 * x['language alone']:.1f}" if "language alone" in x else ""
        print(f"  {name:5} {percent(x)}{known}")


def main(argv: list[str] | None = None) -> dict:
    """Write the data, train, and return the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="with train, validation and test, each with a metadata.csv")
    parser.add_argument("--audio_model", required=True)
    parser.add_argument("--text_model", help="default: a small new one")
    parser.add_argument("--out", type=Path, default=Path("runs/multilingual"))
    options, training = parser.parse_known_args(argv)
    data, run = options.out / "data", options.out / "run"
    splits = {name: write_split(Path(options.folder) / name, data / name) for name in ("train", "validation", "test")}
    columns = [name for name in splits["train"][0] if name.startswith("caption")]
    text_model = options.text_model or str(options.out / "xlm-r")
    if not Path(text_model).exists() and not options.text_model:
        new_xlm_r([row[name] for row in splits["train"] for name in columns if row[name]], Path(text_model))
    command = [sys.executable, "-m", "wavlink", "train", "sounds", "--output_dir", run, "--data", data]
    command += ["--audio_model", options.audio_model, "--text_model", text_model]
    command += ["--caption_columns", ",".join(columns), *training]
    if code := subprocess.run([str(word) for word in command]).returncode:
        raise SystemExit(code)
    scores = score(Embedder(run / "best"), splits["test"])
    (options.out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    show(scores)
    return scores


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack characters of these languages
    main()
