"""One table type for every report: plain text for a terminal, Markdown for a file."""

from wavlink.evaluation.report import Table, comparison

TABLE = Table(["", "R@1", "median rank"], [["text → audio", "43.2 [40.0, 50.0]", "3"], ["sound"], ["  all", "1.0"]])


def test_plain_text_aligns_labels_to_the_left_and_cells_to_the_right():
    assert str(TABLE).splitlines() == [
        "                            R@1  median rank",
        "text → audio  43.2 [40.0, 50.0]            3",
        "sound",
        "  all                       1.0",
    ]


def test_labels_have_a_least_width():
    assert str(Table(["", "n"], [["a", "1"]], label_width=5)).splitlines() == ["       n", "a      1"]


def test_markdown_has_a_rule_below_the_titles():
    table = Table(["name", "R@1"], [["a", "1.0"], ["b", "2.0"]])
    assert table.markdown() == "| name | R@1 |\n|---|---|\n| a | 1.0 |\n| b | 2.0 |"


def test_models_are_compared_in_the_columns_of_their_scores():
    def scores(name: str, value: float) -> dict:
        figure = {"value": value, "interval": [0.0, 1.0]}
        about = {"kind": "wavlink", "parameters": 1_500_000, "dims": 8}
        return {"model": name, "about": about, "zero_shot": {"8": {"accuracy": figure}}}

    lines = comparison([scores("first", 0.5), scores("second one", 0.25)]).splitlines()
    assert lines[0].split() == ["zero-shot"]
    assert lines[1].split() == ["first", "(wavlink,", "1.5M)", "50.0", "[0.0,", "100.0]"]
    assert len({len(line) for line in lines}) == 1
