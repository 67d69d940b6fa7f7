"""Pages of answers side by side: what they say, that nothing in an answer runs, and that the filters work."""

import html
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from sams.runtime.errors import UserError
from sams.study.study import Study
from sams.tables.side_by_side import page, pairs
from tests.tables import made

ATTACK = (
    "</div></article><script>document.body.dataset.owned = 'yes'</script>"
    '<img src="x" onerror="document.body.dataset.owned = \'yes\'">{{ 7 * 7 }}'
)
METHODS = ["sft", "dpo", "dpo-sams"]
STUDY = made.study(METHODS, [0, 1])
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# Preferences for each method's outputs, and ratings of the turns of each question.
PREFERENCES = {"sft": (1.25, 1.5, 2.0), "dpo": (1.75, 1.504, 1.0), "dpo-sams": (1.0, 1.0, 1.0)}
RATINGS = {"sft": {81: (4, 6), 101: (9, 9)}, "dpo": {81: (5, 5), 101: (10, 9)}, "dpo-sams": {81: (1, 1)}}


def annotations(method: str, judge: str = "local judge") -> list[dict[str, Any]]:
    outputs = [f"{method} says plum", f"{method} says " + "é" * 10, ATTACK]
    return [
        {
            "instruction": f"instruction {number}",
            "dataset": "fruit",
            "output_1": f"baseline {number}",
            "output_2": output,
            "preference": preference,
            "judge": judge,
        }
        for number, (output, preference) in enumerate(zip(outputs, PREFERENCES[method], strict=True))
    ]


def judgments(method: str) -> list[dict[str, Any]]:
    return [
        {
            "question_id": question,
            "turn": turn,
            "score": score,
            "model": method,
            "judge": ["local judge", "single-v1"],
            "judgment": f"<b>Fair.</b> Rating: [[{score}]]",
        }
        for question, scores in RATINGS[method].items()
        for turn, score in zip((1, 2), scores, strict=True)
    ]


def answers(method: str) -> list[dict[str, Any]]:
    return [
        {"question_id": question, "choices": [{"turns": [f"{method} one {question}", f"{method} two"]}]}
        for question in RATINGS[method]
    ]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A setting's folder with the scores of three methods."""
    files: dict[str, Any] = {
        "questions/mt_bench/mt_bench_questions.jsonl": [
            {"question_id": 81, "category": "writing", "turns": ["Write of pears.", "Shorter."]},
            {"question_id": 101, "category": "math", "turns": ["What is 6 x 7?", "And half of it?"]},
        ]
    }
    for method in METHODS:
        folder = f"{method}/seed0"
        files |= {
            f"{folder}/alpaca_eval/annotations.json": annotations(method),
            f"{folder}/alpaca_eval/metrics.json": made.alpaca_eval(50.0 + len(method), 1.0),
            f"{folder}/mt_bench/judgments.jsonl": judgments(method),
            f"{folder}/mt_bench/answers.jsonl": answers(method),
            f"{folder}/mt_bench/metrics.json": made.mt_bench(7.25, 0.5),
        }
    return made.write(tmp_path / "results", files)


def readable(text: str) -> str:
    """What a page shows, without its tags, on one line."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text.partition("<body>")[2])).split())


def test_each_method_is_shown_with_the_start_and_the_first_trained_one() -> None:
    assert pairs(made.study([*METHODS, "x"], [0])) == [
        *(("dpo", "sft"), ("dpo-sams", "sft"), ("x", "sft")),
        *(("dpo-sams", "dpo"), ("x", "dpo")),
    ]
    assert pairs(made.study(["dpo"], [0])) == pairs(made.study(["sft"], [0])) == []
    assert pairs(made.study(["x", "dpo"], [0])) == [("dpo", "x")]
    assert pairs(made.study(METHODS, [0], benchmarks={})) == [], "no benchmark, no answers"


def test_a_page_says_what_was_asked_answered_and_judged(results: Path) -> None:
    said = readable(page(STUDY, results, "dpo", "sft"))
    assert "Study tiny, world, seed 0." in said
    # Score and lengths, computed by hand: 13, 19 and len(ATTACK) characters; the baseline's are 10.
    attack = len(ATTACK)
    assert f"dpo 52.0 53.0 {(13 + 19 + attack) / 3:.0f} 19 {attack}" in said
    assert "baseline – – 10 10 10" in said
    # Preferences in percent: 75, 50.4, 0 against 25, 50, 100.
    assert "dpo − sft, win rate: −16.53 points (95 % interval" in said
    assert "dpo is better on 1 of 3, sft on 1, equal on 1." in said
    # Means 5 and 9.5 against 5 and 9.
    assert "dpo − sft, average: +0.25 of 10" in said
    assert "dpo is better on 1 of 2, sft on 0, equal on 1." in said
    assert (
        "instruction 0 dpo, preferred with 75.0 %, 13 characters dpo says plum sft, preferred with 25.0 %"
        in said
    )
    assert "The baseline's answer baseline 0" in said
    assert (
        "What is 6 x 7? dpo, rated 10, 11 characters dpo one 101 The judge's explanation <b>Fair.</b>" in said
    )
    assert "And half of it? dpo, rated 9, 7 characters dpo two The judge's explanation" in said
    assert "not GPT-4 judgments and never comparable with published" in said


def test_what_models_say_is_shown_and_not_run(results: Path) -> None:
    text = page(STUDY, results, "dpo", "sft")
    assert readable(text).count(" ".join(ATTACK.split())) == 2
    assert "<img" not in text and text.count("<script>") == 1 and "<b>" not in text
    assert not re.search(r"""(src|href)\s*=|https?:|@import|url\(""", text.replace(escape(ATTACK), ""))


def test_methods_that_are_not_comparable_are_refused(results: Path) -> None:
    made.write(results, {"sft/seed0/alpaca_eval/annotations.json": annotations("sft", "gpt-4")})
    with pytest.raises(UserError, match="judgments of 'gpt-4', 'local judge' are not comparable"):
        page(STUDY, results, "dpo", "sft")
    made.write(results, {"sft/seed0/alpaca_eval/annotations.json": annotations("sft")})
    with pytest.raises(UserError, match=r"dpo-sams/seed0/.*judged on other questions than .*: '101'"):
        page(STUDY, results, "dpo", "dpo-sams")
    (results / "dpo/seed0/alpaca_eval/annotations.json").unlink()
    with pytest.raises(UserError, match=r"annotations\.json: no such file"):
        page(STUDY, results, "dpo", "sft")


def test_an_item_without_a_judgment_is_left_out(results: Path) -> None:
    rows = annotations("dpo")
    rows[0] |= {"preference": None, "missing": "refused"}
    made.write(
        results,
        {
            "dpo/seed0/alpaca_eval/annotations.json": rows,
            "dpo/seed0/mt_bench/judgments.jsonl": judgments("dpo")[1:],
        },
    )
    said = readable(page(STUDY, results, "dpo", "sft"))
    assert "dpo is better on 0 of 2, sft on 1, equal on 1." in said
    assert "paired bootstrap over 2 instructions" in said and "paired bootstrap over 1 questions" in said


def test_a_study_with_one_benchmark_has_that_one(results: Path, tmp_path: Path) -> None:
    study: Study = made.study(METHODS, [0], benchmarks={"mt_bench": {}})
    text = page(study, results, "dpo", "sft")
    assert 'data-on="mt_bench"' in text and "alpaca_eval" not in text
    made.run_script("answers_page", study, results, {"html": tmp_path / "p.html"}, method="dpo", base="sft")
    assert (tmp_path / "p.html").read_text(encoding="utf-8") == text


# --- in a browser ----------------------------------------------------------------------------------


@pytest.fixture
def opened(results: Path, tmp_path: Path) -> Any:
    """Open the page at an address in a browser without a window; what the page has become."""
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    file = tmp_path / "page.html"
    file.write_text(page(STUDY, results, "dpo", "sft"), encoding="utf-8")

    def at(address: str) -> str:
        done = subprocess.run(
            [
                *(BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *(f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"{file.as_uri()}{address}"),
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return at


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (
            "",
            [
                "alpaca_eval equal",
                "alpaca_eval method",
                "alpaca_eval base",
                "mt_bench equal",
                "mt_bench method",
            ],
        ),
        ("#better=method", ["alpaca_eval method", "mt_bench method"]),
        ("#on=alpaca_eval&better=base&text=onerror%3D", ["alpaca_eval base"]),
        ("#on=mt_bench&text=PEARS", ["mt_bench equal"]),
        ("#text=nowhere", []),
    ],
)
def test_the_filters_of_an_address_show_what_fits(opened: Any, address: str, shown: list[str]) -> None:
    page_now = opened(address)
    articles = re.findall(r'<article data-on="(\w+)" data-better="(\w+)"( hidden="")?>', page_now)
    assert len(articles) == 5
    assert sorted(f"{on} {better}" for on, better, hidden in articles if not hidden) == sorted(shown)
    assert f"{len(shown)} of 5 shown</output>" in page_now
    assert "data-owned" not in page_now.partition("<body")[2].partition(">")[0]
    assert "&lt;/div&gt;&lt;/article&gt;&lt;script&gt;" in page_now
