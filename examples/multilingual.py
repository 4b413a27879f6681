"""A WavLink for six languages: Whisper beside an XLM-R, trained by train.py and scored in each language.

    python examples/multilingual.py FOLDER --audio_model openai/whisper-tiny.en --out runs/multilingual

FOLDER is an audiofolder with English captions and a `label`. Captions in other languages are made here: the labels of
LABELS in six languages, and, for speech, the transcript (the quotation that ends an English caption), in its
language. The XLM-R starts from random weights and a tokenizer made from these texts, so it knows the words of its
training data alone; a pretrained one is `--text_model FacebookAI/xlm-roberta-base`. Other options are those
of train.py.
"""

import argparse
import csv
import json
import re
from collections import Counter
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizer

import train
from modeling_wavlink import WavLinkModel
from processing import WavLinkProcessor
from processing.datasets.load import caption_columns, captions_of, load_split, with_captions
from wavlink.console import escape_unwritable
from wavlink.evaluation.embed_split import embed_dataset, embed_text
from wavlink.evaluation.metrics import percent
from wavlink.evaluation.retrieval import retrieval_scores
from wavlink.evaluation.zero_shot import zero_shot_scores

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


def write_folder(source: str, out: Path) -> list[str]:
    """Write links to the sounds and the new columns to `out`; return the names of all caption columns."""
    for split in ("train", "validation", "test"):
        rows = load_split(source, split)
        english = caption_columns(rows)
        texts = [{**row, **texts_of(row)} for row in rows.remove_columns("audio")]
        (out / split).mkdir(parents=True, exist_ok=True)
        with open(out / split / "metadata.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["file_name", *texts[0]])
            writer.writeheader()
            for number, (audio, row) in enumerate(zip(rows["audio"], texts, strict=True)):
                sound = Path(audio["path"]).resolve()
                link = out / split / f"{number:06d}{sound.suffix}"  # metadata may name no file outside its folder
                link.unlink(missing_ok=True)
                link.symlink_to(sound)
                writer.writerow({"file_name": link.name, **row})
    return [*english, *(f"caption_{name}" for name in PROMPTS), SAID]


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


def score(model: WavLinkModel, processor: WavLinkProcessor, clips: Dataset) -> dict:
    """Return zero-shot accuracy in each language, and the recall of transcripts to clips, by the clip's language."""
    named = clips.select([n for n, label in enumerate(clips["label"]) if label in WORDS])
    spoken = with_captions(clips, [SAID])
    embedded, dim = embed_dataset(model, processor, named, []), model.config.projection_dim
    labels = sorted({*named["label"]})
    scores = {"clips": len(named), "chance": 1 / len(labels), "zero_shot": {}}
    for name, prompt in PROMPTS.items():
        words = {label: WORDS[label][name] for label in labels}
        options = {"dims": [dim], "prompts": prompt, "renames": words}
        zero_shot = zero_shot_scores(embedded.audio, named["label"], partial(embed_text, model, processor), **options)
        scores["zero_shot"][name] = zero_shot[str(dim)]["accuracy"]
    pairs = embed_dataset(model, processor, spoken, [SAID])
    if len(pairs.text) < 2:  # one phrase cannot be searched
        return scores
    groups = spoken["language"] if "language" in spoken.column_names else []
    retrieval = retrieval_scores(pairs.audio, pairs.text, pairs.correspondence, [dim], groups)
    scores["said"] = {"clips": len(spoken), "chance": retrieval["chance"]["text_to_audio"]["R@10"]}
    scores["said"]["all"] = retrieval["text_to_audio"][str(dim)]["R@10"]
    for name, clips_of_it in Counter(groups).most_common(8):
        chance = min(1, 10 / clips_of_it)  # of a model that knows the language alone
        scores["said"][name] = {**retrieval["groups"][name]["text_to_audio"]["R@10"], "language alone": chance}
    return scores


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
    parser.add_argument("folder", help="an audiofolder with train, validation and test")
    parser.add_argument("--audio_model", required=True)
    parser.add_argument("--text_model", help="default: a small new one")
    parser.add_argument("--out", type=Path, default=Path("runs/multilingual"))
    options, training = parser.parse_known_args(argv)
    columns = write_folder(options.folder, options.out / "data")
    text_model = options.text_model or str(options.out / "xlm-r")
    if not Path(text_model).exists() and not options.text_model:
        rows = load_split(str(options.out / "data"), "train").remove_columns("audio")
        new_xlm_r([text for row in rows for text in captions_of(row, columns)], Path(text_model))
    towers = ["--audio_model", options.audio_model, "--text_model", text_model]
    data = ["--data", str(options.out / "data"), "--caption_columns", ",".join(columns)]
    run = ["--output_dir", str(options.out / "run")]
    train.train(train.parse_recipe(["sounds", *towers, *data, *run, *training]))
    best = str(options.out / "run" / "best")
    model = WavLinkModel.from_pretrained(best).eval()
    processor = WavLinkProcessor.from_pretrained(best)
    scores = score(model, processor, load_split(str(options.out / "data"), "test"))
    (options.out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    show(scores)
    return scores


if __name__ == "__main__":
    escape_unwritable()
    main()
