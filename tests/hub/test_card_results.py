"""The results of a card: intervals and paired differences against closed forms, and the words that follow from them."""

import copy
import json

import pytest
from made_outcomes import made_outcomes
from page_checks import CARDS

from hf_nullspace.hub import card_results
from hf_nullspace.hub.card_results import undecided
from hf_nullspace.hub.model_card import TEMPLATE, TRAINING_NAME, markdown_table, render_section
from hf_nullspace.robustness.profiles import EVALUATION_SET, PREVIEW
from hf_nullspace.robustness.report import RobustnessReport
from hf_nullspace.robustness.scoring import score_columns


NAMES = [column.name for column in PREVIEW.columns]


def make_report(name: str, hits: list[bool]) -> RobustnessReport:
    """A report with the same answers in every column."""
    outcomes = {column: made_outcomes(hits) for column in NAMES}
    run = {"num_images": {EVALUATION_SET: len(hits)}}
    return RobustnessReport(name, PREVIEW, score_columns(PREVIEW.columns, outcomes), {}, {}, {}, run, {}, outcomes)


def test_differences_are_paired_and_intervals_those_of_the_report():
    ours, plain = (
        make_report("nullspace", [True] * 60 + [False] * 40),
        make_report("plain", [True] * 40 + [False] * 60),
    )
    found = card_results({"plain": plain, "nullspace": ours})
    assert list(found["results"]) == ["plain", "nullspace"]
    row = ours.columns["clean"]
    assert found["intervals"]["nullspace"]["clean"] == [row["low"], row["high"]]
    difference, low, high = found["differences"]["clean"]
    assert difference == pytest.approx(20)
    # 20 of 100 images differ, all one way: the bootstrap is binomial with a standard deviation of 4 points.
    assert (low, high) == pytest.approx((20 - 1.96 * 4, 20 + 1.96 * 4), abs=1.0)
    assert undecided(found["differences"]) == []
    assert undecided(card_results({"plain": ours, "nullspace": copy.copy(ours)})["differences"]) == NAMES
    assert card_results({"nullspace": ours})["differences"] is None


def test_the_table_has_intervals_and_differences():
    table = markdown_table(
        {"plain": {"clean": 90.0, "fgsm": 10.0}, "nullspace": {"clean": 91.0, "fgsm": 30.0}},
        {name: {"clean": [80.0, 95.0], "fgsm": [5.0, 35.0]} for name in ("plain", "nullspace")},
        {"clean": [1.0, -2.0, 4.0], "fgsm": [20.0, 10.0, 30.0]},
    )
    assert table.splitlines()[2:] == [
        "| plain | 90.00 [80.00, 95.00] | 10.00 [5.00, 35.00] |",
        "| nullspace | 91.00 [80.00, 95.00] | 30.00 [5.00, 35.00] |",
        "| nullspace - plain | +1.00 [-2.00, +4.00] | +20.00 [+10.00, +30.00] |",
    ]


@pytest.mark.parametrize(
    ("lows", "words"),
    [
        ((-1.0, -1.0), "Every interval contains 0: these images do not tell the two models apart."),
        ((-1.0, 1.0), "The interval contains 0, so these images do not tell the two models apart, for: clean."),
        ((1.0, 1.0), "No interval contains 0."),
    ],
)
def test_the_card_says_what_the_intervals_mean(lows, words):
    facts = json.loads((CARDS / "digits" / TRAINING_NAME).read_text(encoding="utf-8"))
    rows = {name: {"clean": 90.0, "fgsm": 10.0} for name in ("plain", "nullspace")}
    intervals = {name: {column: [0.0, 100.0] for column in row} for name, row in rows.items()}
    differences = {name: [2.0, low, 3.0] for name, low in zip(rows["plain"], lows, strict=True)}
    section = render_section({**facts, "results": rows, "intervals": intervals, "differences": differences})
    assert f"\n{words}\n" in section


@pytest.mark.parametrize(
    ("converged", "expected", "unexpected"),
    [
        ([True, True], "beside each clean image it saw the same", "left out"),
        (
            [True, False, False],
            "In 2 of 3 rounds the noise was not within epsilon and left out",
            "## Finetuning without noise",
        ),
        (
            [False, False],
            "the noise of none of its 2 rounds was within epsilon, and was left out",
            "beside each clean image it saw",
        ),
        (
            [False],
            "the noise of its one round was not within epsilon, and was left out",
            "beside each clean image it saw",
        ),
        ([], "no noise was made for it", "beside each clean image it saw"),
    ],
)
def test_the_card_says_what_training_saw(converged, expected, unexpected):
    facts = json.loads((CARDS / "digits" / TRAINING_NAME).read_text())
    row = facts["rounds"][0]
    facts["rounds"] = [
        {**row, "round": index, "converged": each, "in_use": each, "probability_mse": 0.02 if each else 0.04}
        for index, each in enumerate(converged)
    ]
    section = render_section(facts)
    assert expected in section
    assert unexpected not in section
    assert ("which saw no noise" in section) == (not any(converged))


def test_a_control_of_certified_noise_was_trained_on():
    facts = json.loads((CARDS / "digits" / TRAINING_NAME).read_text())
    facts["rounds"] = [{**facts["rounds"][0], "converged": False, "source_converged": True}]
    assert "beside each clean image it saw the same" in render_section(facts)


def test_the_card_says_what_competes():
    facts = json.loads((CARDS / "digits" / TRAINING_NAME).read_text())
    section = render_section({**facts, "template": TEMPLATE, "result_logits": {"competing": 2, "all": 10}})
    assert "A prediction is the largest of 2 of the model's 10 logits." in " ".join(section.split())
    assert "A prediction is" not in render_section({**facts, "result_logits": None})


FEW_IMAGES = {"converged": False, "probability_mse": 0.02, "num_images": 64, "num_images_needed": 199}
FEW_IMAGES_IN_WORDS = (
    "64 images were measured, but no fewer than 199 can show a mean of 0.03 with a confidence of 95 %"
)


@pytest.mark.parametrize("count", [1, 2])
def test_the_card_says_that_noise_in_use_is_not_certified_and_why(count):
    facts = json.loads((CARDS / "digits" / TRAINING_NAME).read_text())
    facts["rounds"] = [{**facts["rounds"][0], "round": index, **FEW_IMAGES, "in_use": True} for index in range(count)]
    facts["certificate"] = {**facts["certificate"], **FEW_IMAGES}
    section = render_section(facts)
    assert "## Nullspace finetuning\n" in section and "left out" not in section and "saw no noise" not in section
    where, why = [("its one round", "The reason"), ("2 of 2 rounds", "In the last of them")][count - 1]
    assert f"In {where} the noise was trained on though it is not certified: its measured mean was within" in section
    assert f"\n{why}: {FEW_IMAGES_IN_WORDS}.\n" in section
    assert f"On training images, when it was made: not certified, since {FEW_IMAGES_IN_WORDS}.\n" in section


def test_the_card_says_why_noise_within_epsilon_was_left_out():
    facts = json.loads((CARDS / "digits" / TRAINING_NAME).read_text())
    facts["rounds"] = [{**facts["rounds"][0], **FEW_IMAGES, "in_use": False}]  # `on_failure="skip"`
    section = render_section(facts)
    assert (
        f"the noise of its one round was not certified, and was left out.\nThe reason: {FEW_IMAGES_IN_WORDS}."
        in section
    )


def test_a_card_gives_the_reason_that_is_one():
    facts = json.loads((CARDS / "digits" / TRAINING_NAME).read_text())
    numbers = {"probability_mse": 0.01, "probability_mse_upper": 0.02, "exchanged_probability_mse": 0.025}
    facts["evaluation_certificate"] = {**facts["evaluation_certificate"], **numbers, "converged": False}
    assert "On evaluation images the noise is not certified, since the model tells its images apart by 0.025 only" in (
        render_section(facts)
    )


def test_the_table_of_rounds_marks_those_that_are_not_certified():
    facts = json.loads((CARDS / "digits" / TRAINING_NAME).read_text())
    facts["rounds"] = [{**facts["rounds"][0], "round": index} for index in range(3)]
    facts["rounds"][1] |= {**FEW_IMAGES, "in_use": True}
    rows = [line.split(" | ")[0] for line in render_section(facts).split("### Rounds")[1].splitlines() if "|" in line]
    assert rows[2:5] == ["| 0", "| 1 (not certified)", "| 2"]
    facts["rounds"][1] = facts["rounds"][0]
    assert "(not certified)" not in render_section(facts)
