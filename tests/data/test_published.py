"""Published data sets: their rows give the pairs that DPO's reference code makes of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from sams.data.forms import Reading
from sams.data.published import published_pairs, rendered, sft_targets
from sams.data.records import Pair, is_flipped
from sams.runtime.errors import UserError
from sams.study.settings import Form


def write(folder: Path, *rows: Any) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def comment_pair(post: str, a: str, b: str, score_a: float, score_b: float, label: int) -> dict[str, Any]:
    """A row of stanfordnlp/SHP, with the keys that nobody reads."""
    return {
        "post_id": "iyjucs",
        "domain": "askculinary_train",
        "upvote_ratio": 0.98,
        "history": post,
        "c_root_id_A": "g6dkoz8",
        "score_A": score_a,
        "score_B": score_b,
        "human_ref_A": a,
        "human_ref_B": b,
        "labels": label,
        "seconds_difference": 1469.0,
        "score_ratio": max(score_a / score_b, score_b / score_a) if score_a > 0 < score_b else 0.0,
    }


SHP = (
    comment_pair("Why salt?", "Taste.", "Why not?", 4, 2, 1),
    comment_pair("Why salt?", "Habit.", "Chemistry.", 3, 9, 0),
    comment_pair("Why salt?", "Taste.", "Chemistry.", 4, 5, 0),
    comment_pair("Why oil?", "Heat.", "No idea.", 19, 10, 1),
    comment_pair("Why rest meat?", "Juice.", "Waiting is fun.", 21, 3, 1),
)


def test_shp_keeps_a_score_ratio_of_two_and_the_label_decides(tmp_path: Path) -> None:
    reading = Reading()
    found = list(published_pairs("shp", write(tmp_path, *SHP), "train", reading))
    assert found == [
        Pair(asked("Why salt?"), "Taste.", "Why not?"),
        Pair(asked("Why salt?"), "Chemistry.", "Habit."),
        Pair(asked("Why rest meat?"), "Juice.", "Waiting is fun."),
    ]
    assert reading.counts == {"rows": 5, "left_out_score_ratio": 2}


def test_shp_gives_sft_the_best_response_to_each_post(tmp_path: Path) -> None:
    found = sft_targets("shp", write(tmp_path, *SHP), "train", Reading())
    assert [(example.prompt[0]["content"], example.response) for example in found] == [
        ("Why salt?", "Chemistry."),
        ("Why rest meat?", "Juice."),
    ]


QUESTION = {
    "qid": 1,
    "question": "<p>How do I <em>print</em>?</p>\n<pre><code>print 1 &lt; 2\n</code></pre>",
    "answers": [
        {"answer_id": 1, "pm_score": 1, "text": "<p>Ask.</p>", "selected": False},
        {"answer_id": 2, "pm_score": 4, "text": "<p>Use</p><ul><li><code>print()</code></li></ul>", "selected": True},
        {"answer_id": 3, "pm_score": 1, "text": "<p>See <a href='x'>there</a>.</p>", "selected": False},
    ],
    "metadata": ["https://stackexchange.com"],
}  # fmt: skip


def test_stack_exchange_pairs_every_two_answers_without_html(tmp_path: Path) -> None:
    reading = Reading()
    source = write(tmp_path, QUESTION)
    prompt = asked("How do I print?\n\n<code>print 1 < 2\n</code>")
    best = "Use\n\n<code>print()</code>"
    assert list(published_pairs("stack_exchange", source, "train", reading)) == [
        Pair(prompt, best, "Ask."),
        Pair(prompt, best, "See there."),
    ]
    assert reading.counts == {"rows": 1, "left_out_equal_scores": 1}
    [example] = sft_targets("stack_exchange", source, "train", Reading())
    assert (example.prompt, example.response) == (prompt, best)


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        ("shp", SHP[0] | {"score_B": 0}, "row 1, key 'score_B': expected a number above 0, found 0"),
        ("shp", SHP[0] | {"labels": "1"}, "row 1, key 'labels': expected 0 or 1, found '1'"),
        ("shp", SHP[0] | {"human_ref_B": " "}, "row 1, key 'human_ref_B': empty"),
        ("shp", SHP[0] | {"human_ref_B": "Taste. "}, "row 1: both comments are equal"),
        ("shp", {"prompt": "Why?"}, "row 1, key 'history': missing"),
        ("stack_exchange", QUESTION | {"answers": []}, "row 1, key 'answers': expected a list"),
        ("stack_exchange", QUESTION | {"question": "<p> </p>"}, "row 1, key 'question': empty"),
        ("stack_exchange", QUESTION | {"answers": ["Ask."]}, "row 1, answer 1: expected `text`"),
    ],
)
def test_broken_rows_are_named(form: Form, row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        list(published_pairs(form, write(tmp_path, row), "train", Reading()))


def test_broken_rows_can_be_left_out_counted_and_named(tmp_path: Path) -> None:
    dialogue = "\n\nHuman: Hi\n\nAssistant: "
    rows = [
        {"chosen": dialogue + "Hello.", "rejected": dialogue + "What?"},
        {"chosen": dialogue + "Hello.", "rejected": dialogue},
        {"chosen": dialogue + "Hello.", "rejected": dialogue + " Hello."},
        {"chosen": dialogue + "Hello.", "rejected": "\n\nHuman: Ho\n\nAssistant: What?"},
    ]
    reading = Reading(drop=True)
    assert len(list(published_pairs("hh", write(tmp_path, *rows), "train", reading))) == 1
    assert reading.counts["rows"] == 4 and reading.counts["broken_rows"] == 3
    reasons = (
        "row 2, key 'rejected': empty",
        "row 3: chosen and rejected are equal",
        "row 4: chosen and rejected differ",
    )
    for place, reason in zip(reading.counts["first_broken"], reasons, strict=True):
        assert reason in place
    with pytest.raises(UserError, match=r"none of 2 rows can be read, the first: .*row 1: unknown form"):
        list(published_pairs("hh", write(tmp_path, {"a": 1}, {"b": 2}), "train", Reading(drop=True)))


@pytest.mark.parametrize("form", ["hh", "messages", "shp", "stack_exchange"])
def test_what_is_written_in_a_form_is_read_back_from_it(form: Form, tmp_path: Path) -> None:
    pairs = [
        Pair(asked("add : 1 and 2"), "3", "the answer is 4 ."),
        Pair(asked("in order : 2 1"), "1 2", "2"),
    ]
    turns = [*asked("add : 1 and 2"), {"role": "assistant", "content": "3"}, *asked("twice")]
    if form in ("hh", "messages"):
        pairs.append(Pair(turns, "3 3", "6"))
    source = write(tmp_path, *map(rendered(form), pairs))
    assert list(published_pairs(form, source, "train", Reading())) == pairs


def test_flips_hang_on_id_and_seed_and_a_greater_share_holds_a_smaller_one() -> None:
    ids = [f"{number:016x}" for number in range(4000)]
    few, many = ({pair for pair in ids if is_flipped(pair, share, seed=0)} for share in (0.2, 0.4))
    assert few < many
    # Three standard errors of a share of 4,000 draws.
    assert abs(len(few) / 4000 - 0.2) < 0.019 and abs(len(many) / 4000 - 0.4) < 0.024
    assert few != {pair for pair in ids if is_flipped(pair, 0.2, seed=1)}
    assert not any(is_flipped(pair, 0.0, 0) for pair in ids) and all(is_flipped(pair, 1.0, 0) for pair in ids)
