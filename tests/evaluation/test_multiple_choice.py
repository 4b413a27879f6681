"""Multiple choice on made-up vectors: accuracies by hand, ties, truncated texts, and choices from labels."""

import datasets
import numpy as np
import pytest
import torch

from wavlink.evaluation.metrics import multiple_choice_hits
from wavlink.evaluation.multiple_choice import (
    AIR_BENCH_GROUPS,
    Question,
    choices_from_labels,
    multiple_choice_scores,
    questions_of,
    text_reader,
)
from wavlink.evaluation.report import multiple_choice_report

WORDS = {"dog": [1.0, 0, 0, 0], "cat": [0, 1.0, 0, 0], "bell": [0, 0, 1.0, 0], "rain": [0, 0, 0, 1.0]}
CHOICES = tuple(WORDS)
AUDIO = torch.tensor([[3, 2, 1, 0], [0, 1, 0, 4], [1, 1, 0, 0.5]], dtype=torch.float32)  # dog; rain; dog = cat


def embed(texts: list[str]) -> torch.Tensor:
    """A text's vector is its last word's."""
    return torch.tensor([WORDS[text.split()[-1]] for text in texts])


def ask(answer: str, clip: int, task: str = "Sound_AQA", choices=CHOICES) -> Question:
    return Question("What is it?", tuple(choices), choices.index(answer), clip, task)


def test_accuracies_by_hand():
    questions = [
        ask("dog", 0),  # right
        ask("cat", 0, choices=("cat", "bell")),  # right, since there is no dog to choose
        ask("cat", 1),  # wrong
        ask("rain", 1, "Music_AQA"),  # right
        ask("dog", 2, "Music_AQA"),  # a tie with cat
        ask("bell", 2, "Speech_Grounding", ("bell", "rain", "dog")),  # wrong
    ]
    scores = multiple_choice_scores(AUDIO, questions, embed, [4, 2])
    assert scores["questions"] == 6 and scores["clips"] == 3 and scores["text"] == "{question} {choice}"
    assert scores["chance"] == pytest.approx((4 / 4 + 1 / 2 + 1 / 3) / 6)
    whole = scores["4"]
    assert whole["total"]["value"] == pytest.approx(3 / 6) and whole["ties"] == 1
    assert {name: figure["value"] for name, figure in whole["tasks"].items()} == pytest.approx(
        {"Speech_Grounding": 0, "Sound_AQA": 2 / 3, "Music_AQA": 1 / 2}
    )
    assert {name: figure["value"] for name, figure in whole["groups"].items()} == pytest.approx(
        {"speech": 0, "sound": 2 / 3, "music": 1 / 2}
    )
    assert whole["task_means"]["total"] == pytest.approx((0 + 2 / 3 + 1 / 2) / 3)
    assert scores["groups"]["sound"] == {
        "questions": 3,
        "clips": 2,
        "chance": pytest.approx((1 / 4 + 1 / 2 + 1 / 4) / 3),
    }
    assert scores["tasks"]["Sound_AQA"]["group"] == "sound" and scores["unknown_tasks"] == []
    counts = {"unreadable": 0, "no_third_choice": 1, "no_fourth_choice": 2, "duplicate_choices": 0, "same_text": 0}
    assert scores["counts"] == counts
    halved = scores["2"]  # rain and bell have no length there: dog 3, cat 2; cat 1, dog 0; dog = cat
    assert halved["total"]["value"] == pytest.approx(3 / 6)
    assert halved["tasks"]["Music_AQA"]["value"] == 0 and halved["tasks"]["Sound_AQA"]["value"] == 1


def test_as_the_metrics_score_one_question_at_a_time():
    rng = np.random.default_rng(0)
    audio = torch.from_numpy(rng.normal(size=(30, 8))).float()
    vectors = {str(number): torch.from_numpy(rng.normal(size=8)).float() for number in range(50)}
    questions = [
        Question("?", tuple(map(str, rng.choice(50, size=2 + n % 3, replace=False))), int(rng.integers(2)), n % 30)
        for n in range(200)
    ]
    scores = multiple_choice_scores(
        audio, questions, lambda texts: torch.stack([vectors[text] for text in texts]), [8, 4], "{choice}", groups=None
    )
    for dim in (8, 4):
        cosines = [
            np.array([torch.cosine_similarity(audio[q.clip, :dim], vectors[c][:dim], dim=0) for c in q.choices])
            for q in questions
        ]
        hits = multiple_choice_hits(cosines, [question.answer for question in questions])
        assert scores[str(dim)]["total"]["value"] == pytest.approx(hits.mean())
    assert scores["groups"] == {} and scores["tasks"] == {} and "task_means" not in scores["8"]


def test_air_benchs_leaderboard_is_a_mean_of_means():
    """Qwen-Audio-Turbo's accuracies of the 19 tasks, in thousandths, and the averages its leaderboard gives it."""
    thousandths = [454, 959, 825, 600, 588, 481, 564, 543, 693, 416, 781, 613, 628, 596, 771, 301, 251, 625, 390]
    right, wrong = [(task, n) for task, n in zip(AIR_BENCH_GROUPS, thousandths, strict=True)], 1000
    questions = [
        ask("dog" if number < n else "cat", 0, task, ("dog", "cat")) for task, n in right for number in range(wrong)
    ]
    scores = multiple_choice_scores(AUDIO, questions, embed, [4])["4"]
    means = scores["task_means"]
    assert {name: round(100 * mean, 1) for name, mean in means["groups"].items()} == {
        "speech": 63.4, "sound": 61.0, "music": 48.9
    }  # fmt: skip
    assert round(100 * means["total"], 1) == 57.8
    assert scores["total"]["value"] == pytest.approx(sum(thousandths) / 19000)  # 58.3: every question counts once


def test_intervals_are_over_clips():
    """Ten questions on each of two clips, all right on one: as sure as two answers, not as twenty."""
    shared = [ask(answer, clip) for clip, answer in ((0, "dog"), (1, "cat")) for _ in range(10)]
    separate = [ask("dog" if clip < 10 else "cat", clip) for clip in range(20)]
    audio = torch.tensor([WORDS["dog"]]).repeat(20, 1)
    few = multiple_choice_scores(audio, shared, embed, [4])["4"]["total"]
    many = multiple_choice_scores(audio, separate, embed, [4])["4"]["total"]
    assert few == {"value": 0.5, "interval": [0.0, 1.0]}
    assert many["value"] == 0.5 and 0.2 < many["interval"][0] < many["interval"][1] < 0.8


def test_each_distinct_text_is_embedded_once():
    embedded = []

    def record(texts):
        embedded.extend(texts)
        return embed(texts)

    multiple_choice_scores(
        AUDIO, [ask("dog", 0), ask("cat", 1), ask("rain", 2)], record, [4, 2], "{question}: {choice}"
    )
    assert embedded == [f"What is it?: {choice}" for choice in CHOICES]


def test_a_choice_given_twice_is_never_right():
    scores = multiple_choice_scores(AUDIO, [ask("dog", 0, choices=("dog", "dog", "cat")), ask("dog", 0)], embed, [4])
    assert scores["4"]["total"]["value"] == 0.5 and scores["4"]["ties"] == 1
    assert scores["counts"]["duplicate_choices"] == 1 and scores["counts"]["same_text"] == 1


def test_cut_texts_are_counted_and_those_that_read_alike_tie(processor, model):
    """The tokenizer takes 32 tokens: [CLS], 30 words and [SEP]."""
    read = text_reader(processor, model.config.text_config)
    long, fits = "rain " * 30, "rain " * 29
    questions = [
        Question(long.strip(), ("dog", "cat"), 0, 0),  # the choice is cut off
        Question(fits.strip(), ("dog", "cat"), 0, 0),
        Question(fits.strip(), ("dog falls", "cat falls"), 0, 0),  # cut, but after what tells them apart
        Question("this is", ("a dog", "a cat"), 0, 0),
    ]
    embedded = []

    def first_is_best(texts):  # two texts of the same words have different vectors only if embedded twice
        embedded.extend(texts)
        return torch.tensor([[2.0, 1] if "dog" in text else [1, 2.0] for text in texts])

    scores = multiple_choice_scores(torch.tensor([[1.0, 0]]), questions, first_is_best, [2], groups=None, read=read)
    assert scores["2"]["total"]["value"] == 3 / 4 and scores["2"]["ties"] == 1
    assert [scores["counts"][name] for name in ("over_long", "over_long_ties", "same_text")] == [2, 1, 1]
    assert len(embedded) == 5  # of the first question's two texts one, and of the third's none
    assert "over_long" not in multiple_choice_scores(AUDIO, [ask("dog", 0)], embed, [4])["counts"]


def test_the_reader_returns_the_towers_tokens(processor, model):
    read = text_reader(processor, model.config.text_config)
    texts = ["a dog barks", "rain " * 31, "rain " * 30]
    tokens, cut = read(texts)
    inputs = processor(text=texts, return_tensors="pt")
    padded = [
        row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    assert [list(ids) for ids in tokens] == padded
    assert cut.tolist() == [False, True, False] and tokens[1] == tokens[2]
    model.config.text_config.max_position_embeddings = 5
    assert text_reader(processor, model.config.text_config)(["a dog", "a dog barks", "a dog barks ."])[1].tolist() == [
        False, False, True
    ]  # fmt: skip


def test_clips_without_a_vector_are_left_out_and_counted():
    questions = [ask("cat", 0), ask("dog", 1), ask("rain", 2)]
    scores = multiple_choice_scores(AUDIO[:2], questions, embed, [4], rows=[1, 2], counts={"missing": 5})
    assert scores["questions"] == 2 and scores["4"]["total"]["value"] == 1
    assert scores["counts"]["unreadable"] == 1 and scores["counts"]["missing"] == 5
    with pytest.raises(ValueError, match="none of 1 questions"):
        multiple_choice_scores(AUDIO[:2], questions[:1], embed, [4], rows=[1, 2])
    with pytest.raises(ValueError, match="one clip for each of 2 vectors"):
        multiple_choice_scores(AUDIO[:2], questions, embed, [4], rows=[1, 1])


def test_unknown_tasks_are_scored_as_other_and_named():
    scores = multiple_choice_scores(AUDIO, [ask("dog", 0), ask("rain", 1, "Bird_Calls")], embed, [4])
    assert scores["unknown_tasks"] == ["Bird_Calls"] and set(scores["groups"]) == {"sound", "other"}
    assert scores["tasks"]["Bird_Calls"]["group"] == "other"
    assert scores["4"]["groups"]["other"]["value"] == 1
    assert scores["4"]["task_means"] == {"total": 1.0, "groups": {"sound": 1.0}}
    assert "tasks in no group: Bird_Calls" in multiple_choice_report(scores)


def test_the_nineteen_tasks_and_their_groups():
    groups = list(AIR_BENCH_GROUPS.values())
    assert [groups.count(name) for name in ("speech", "sound", "music")] == [9, 4, 6]


def test_bad_input_is_refused():
    good = [ask("dog", 0)]
    for text in ("{question}", "{choice} {answer}", "{0} {choice}", "{choice"):
        with pytest.raises(ValueError, match="the text m"):
            multiple_choice_scores(AUDIO, good, embed, [4], text)
    with pytest.raises(ValueError, match="there are 3 clips, but a question on clip 3"):
        multiple_choice_scores(AUDIO, [ask("dog", 3)], embed, [4])
    for broken in (Question("?", ("dog",), 0, 0), Question("?", ("dog", "cat"), 2, 0), Question("?", CHOICES, -1, 0)):
        with pytest.raises(ValueError, match="needs two choices and one of them as its answer"):
            multiple_choice_scores(AUDIO, [broken], embed, [4])
    with pytest.raises(ValueError, match=r"must give \[4, D\] for 4 texts, got \[3, 4\]"):
        multiple_choice_scores(AUDIO, good, lambda texts: embed(texts)[1:], [4])
    with pytest.raises(ValueError, match="NaN"):
        multiple_choice_scores(AUDIO * float("nan"), good, embed, [4])


def test_braces_in_a_question_are_words():
    scores = multiple_choice_scores(AUDIO, [Question("{choice} {x}", CHOICES, 0, 0)], embed, [4])
    assert scores["4"]["total"]["value"] == 1


LABELS = ["dog", None, "cat", "bell", "", "rain", "dog", "wind"] * 20


def test_choices_drawn_from_labels():
    questions = choices_from_labels(LABELS, 3, seed=1)
    assert [q.clip for q in questions] == [index for index, label in enumerate(LABELS) if label]
    for q in questions:
        assert q.choices[q.answer] == LABELS[q.clip] and len(set(q.choices)) == 3 == len(q.choices)
    assert {q.answer for q in questions} == {0, 1, 2}
    others = [choice for q in questions if LABELS[q.clip] == "cat" for choice in q.choices if choice != "cat"]
    assert set(others) == {"dog", "bell", "rain", "wind"}
    assert questions[0].question == "What is this sound?" and questions[0].task == ""


def test_choices_depend_on_the_seed_and_the_clips_index_alone():
    questions = choices_from_labels(LABELS, seed=1)
    assert questions == choices_from_labels(LABELS, seed=1) != choices_from_labels(LABELS, seed=2)
    fewer = [None if index < 80 else label for index, label in enumerate(LABELS)]
    assert choices_from_labels(fewer, seed=1) == questions[-len(choices_from_labels(fewer)) :]


def test_choices_from_labels_score_by_the_clips_group():
    labels, tasks = ["dog", "rain", "dog", "cat"], ["animals", None, "animals", "animals"]
    audio = torch.tensor([WORDS["dog"], WORDS["rain"], WORDS["cat"], WORDS["cat"]])
    questions = choices_from_labels(labels, 3, question="What is that?", tasks=tasks)
    scores = multiple_choice_scores(audio, questions, embed, [4], groups=None)
    assert scores["4"]["total"]["value"] == 3 / 4 and scores["chance"] == pytest.approx(1 / 3)
    assert scores["4"]["tasks"] == {"animals": scores["4"]["tasks"]["animals"]}
    assert scores["4"]["tasks"]["animals"]["value"] == pytest.approx(2 / 3)
    assert "animals" in multiple_choice_report(scores)


def test_choices_from_too_few_labels_are_refused():
    for number in (1, 6):
        with pytest.raises(ValueError, match="between 2 and 5, the distinct labels"):
            choices_from_labels(LABELS, number)
    with pytest.raises(ValueError, match="a task for each of 160 clips, got 1"):
        choices_from_labels(LABELS, tasks=["animals"])


def test_questions_that_share_a_sound_share_a_clip():
    paths = ["a.wav", "b.wav", "a.wav"]
    rows = [
        {
            "audio": {"bytes": None, "path": path},
            "question": "?",
            "choices": ["x", "y"],
            "answer": 1,
            "task": "Sound_AQA",
        }
        for path in paths
    ]
    questions, clips = questions_of(datasets.Dataset.from_list(rows))
    assert [question.clip for question in questions] == [0, 1, 0] and clips == [0, 1]
    assert questions[2] == Question("?", ("x", "y"), 1, 0, "Sound_AQA")


def test_the_table_has_tasks_in_groups_averages_and_the_total():
    questions = [
        ask("dog", 0),
        ask("cat", 1, "Audio_Grounding"),
        ask("rain", 1, "Music_AQA"),
        ask("dog", 0, "Speech_Grounding"),
    ]
    lines = multiple_choice_report(
        multiple_choice_scores(AUDIO, questions, embed, [4, 2], counts={"missing": 5, "rows": 9})
    ).splitlines()
    titles = [line[:36].strip() for line in lines]
    assert titles[2:] == [
        "Speech", "Speech grounding", "all speech", "mean of its tasks",
        "Sound", "Audio grounding", "Sound question answering", "all sound", "mean of its tasks",
        "Music", "Music question answering", "all music", "mean of its tasks",
        "Total", "mean of the groups' means", "5 missing",
    ]  # fmt: skip
    assert "4 dims" in lines[1] and "2 dims" in lines[1]
    total = lines[titles.index("Total")].split()
    assert total[:4] == ["Total", "4", "25.0", "75.0"]
