"""What is known of judges: dates against a given day, and where a study meets them."""

from datetime import date
from pathlib import Path

import pytest

from sams.judge import known
from sams.study.files import load_study, read_settings
from sams.study.settings import Judge
from tests.conftest import ROOT

TODAY = date(2026, 11, 28)


def openai(model: str, **settings: str) -> Judge:
    return Judge(kind="openai", model=model, **settings)


@pytest.mark.parametrize(
    ("model", "day", "expected"),
    [
        (
            "gpt-4-1106-preview",
            TODAY,
            ["Judge gpt-4-1106-preview was shut down on 2026-03-26; its successor"],
        ),
        (
            "gpt-4-turbo",
            date(2026, 10, 23),
            ["was shut down on 2026-10-23; its successor gpt-5.6-sol gives other"],
        ),
        ("gpt-4-turbo", date(2026, 10, 22), ["will be shut down in 1 days, on 2026-10-23"]),
        ("gpt-4.1-2025-04-14", TODAY, ["will be shut down in 47 days, on 2027-01-14"]),
        ("gpt-4.1-2025-04-14", date(2026, 10, 1), []),
        ("gpt-6-luna", TODAY, []),
        # An old file is a warning where a date may be missing, and none where the judge is known to be gone.
        ("gpt-6-luna", date(2027, 6, 1), ["checked on 2026-11-28, 185 days ago: https://"]),
        ("gpt-4-1106-preview", date(2027, 6, 1), ["was shut down"]),
        ("a-judge-of-tomorrow", date(2027, 6, 1), []),
    ],
)
def test_warnings_by_day(model: str, day: date, expected: list[str]) -> None:
    found = known.judge_warnings(openai(model), day)
    assert len(found) == len(expected)
    assert all(part in sentence for part, sentence in zip(expected, found, strict=True)), found


def test_dates_are_of_one_endpoint() -> None:
    judge = openai("gpt-4-turbo", base_url="https://name.openai.azure.com/openai/v1")
    assert known.judge_warnings(judge, TODAY) == known.judge_warnings(Judge(), TODAY) == []


def test_the_paper_s_judge_is_gone_from_its_last_day_on() -> None:
    assert known.papers_judge(date(2026, 3, 25)) == known.PAPERS
    assert known.papers_judge(date(2026, 3, 26)).endswith(", which was shut down on 2026-03-26")
    assert known.comparable("win_rate") == [known.PAPERS] and known.PAPERS in known.comparable("mt_bench")
    assert known.comparable("test_accuracy") == []


def test_published_scores_are_named_where_there_are_any() -> None:
    assert known.published_note({"mt_bench": 0}, "a-judge").startswith(
        f"Published scores are of {known.PAPERS}, "
    )
    assert known.published_note(["own_prompts"], "a-judge") == ""
    assert known.published_note(["alpaca_eval"], known.PAPERS) == ""


def test_the_file_is_consistent_and_the_page_shows_it() -> None:
    names = [name for entry in known.known().judges for name in entry.names]
    assert len(names) == len(set(names))
    assert {entry.successor for entry in known.known().judges} <= {*names, None}
    page = Path(ROOT, "docs", "judging.md").read_text(encoding="utf-8")
    assert known.table() in page, f"docs/judging.md needs this table:\n\n{known.table()}"


def test_an_endpoint_s_judge_is_named() -> None:
    with pytest.raises(
        ValueError, match="kind openai needs `model`, the judge's name; config/judges has examples"
    ):
        Judge(kind="openai")


def test_the_studies_judge_is_the_open_one_and_every_overlay_is_a_judge() -> None:
    def judge_of(*files: str) -> Judge:
        paths = [
            ROOT / "config" / file for file in ("config.yaml", "studies/table1_llama3_instruct.yaml", *files)
        ]
        return load_study(read_settings(paths)).benchmarks.judge

    overlays = sorted(path.name for path in (ROOT / "config" / "judges").glob("*.yaml"))
    judges = {name: judge_of(f"judges/{name}") for name in overlays}
    assert judge_of() == judges["open.yaml"]
    for name, judge in judges.items():
        last = known.known().checked
        assert not any("was shut down" in each for each in known.judge_warnings(judge, last)), name
