"""The main table, compared with figures computed by hand."""

import csv
import html.parser
from pathlib import Path
from typing import Any

import pytest

from sams.runtime.errors import UserError
from sams.tables import captions, main_table, render
from sams.tables.main_table import COLUMNS
from sams.tables.results import read_cells
from sams.tables.show import show
from tests.tables.made import alpaca_eval, mt_bench, run_script, study, train, write

COST_OF_SFT = {"train_seconds": 100.0, "peak_memory_mb": 400.0, "loss": 1.5, "world_size": 2}


def test_columns_are_those_of_the_contract() -> None:
    scores = [
        "length_controlled_winrate",
        "win_rate",
        "mt_bench",
        "test_accuracy",
        "chosen_reward",
        "chosen_logp",
    ]
    triples = [name for score in scores for name in (score, f"{score}_se_items", f"{score}_se_seeds")]
    assert [*COLUMNS] == ["method", "n_seeds", *triples, "train_seconds", "peak_memory_mb"]


def build(root: Path, methods: list[str], seeds: list[int]) -> dict[str, dict[str, Any]]:
    table = main_table.main_table(read_cells(root), methods, seeds)
    return {row["method"]: row for row in table.astype(object).where(table.notna(), None).to_dict("records")}


def test_one_seed(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "sft/seed0/train_metrics.json": COST_OF_SFT,
            "sft/seed0/alpaca_eval/metrics.json": alpaca_eval(48.0, 1.25),
            "dpo/seed0/train_metrics.json": train(61.0, 1.5),
            "dpo/seed0/alpaca_eval/metrics.json": alpaca_eval(54.0, 1.5),
            "dpo/seed0/mt_bench/metrics.json": mt_bench(5.5, 0.25),
        },
    )
    rows = build(tmp_path, ["sft", "dpo"], [0])
    assert rows["dpo"] == {
        "method": "dpo",
        "n_seeds": 1,
        "length_controlled_winrate": 53.0,
        "length_controlled_winrate_se_items": 2.5,
        "length_controlled_winrate_se_seeds": None,
        "win_rate": 54.0,
        "win_rate_se_items": 1.5,
        "win_rate_se_seeds": None,
        "mt_bench": 5.5,
        "mt_bench_se_items": 0.25,
        "mt_bench_se_seeds": None,
        "test_accuracy": 61.0,
        "test_accuracy_se_items": 1.5,
        "test_accuracy_se_seeds": None,
        "chosen_reward": 0.5,
        "chosen_reward_se_items": 0.25,
        "chosen_reward_se_seeds": None,
        "chosen_logp": -20.0,
        "chosen_logp_se_items": 1.0,
        "chosen_logp_se_seeds": None,
        "train_seconds": 10.0,
        "peak_memory_mb": 512.0,
    }
    filled = {key for key, value in rows["sft"].items() if value is not None}
    score = {"length_controlled_winrate", "win_rate"}
    errors = {f"{name}_se_items" for name in score}
    assert filled == {"method", "n_seeds", *score, *errors, "train_seconds", "peak_memory_mb"}


def test_three_seeds(tmp_path: Path) -> None:
    for seed, (rate, error, seconds) in enumerate([(50.0, 1.0, 10.0), (53.0, 1.0, 20.0), (56.0, 2.0, 60.0)]):
        write(
            tmp_path / f"dpo/seed{seed}",
            {
                "train_metrics.json": train(61.0, 1.5, seconds),
                "alpaca_eval/metrics.json": alpaca_eval(rate, error),
            },
        )
    row = build(tmp_path, ["dpo"], [0, 1, 2])["dpo"]
    assert row["n_seeds"] == 3
    assert row["win_rate"] == pytest.approx(53.0)
    assert row["win_rate_se_items"] == pytest.approx(2**0.5), "root of the mean of 1, 1 and 4"
    assert row["win_rate_se_seeds"] == pytest.approx(3**0.5), "standard deviation 3 over the root of 3"
    assert row["test_accuracy_se_seeds"] == 0.0
    assert row["train_seconds"] == pytest.approx(30.0)
    assert build(tmp_path, ["dpo"], [0, 2])["dpo"]["win_rate"] == 53.0, "only the study's seeds count"


def test_missing_figures_are_empty_and_noted(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "dpo/seed0/alpaca_eval/metrics.json": alpaca_eval(
                50.0, 1.0, length_controlled_winrate=None, lc_standard_error=None, lc_unavailable="one length"
            ),
            "dpo/seed1/alpaca_eval/metrics.json": alpaca_eval(52.0, 1.0),
            "dpo/seed1/mt_bench/metrics.json": mt_bench(5.0, 0.2),
        },
    )
    row = build(tmp_path, ["dpo", "kto"], [0, 1])["dpo"]
    assert row["n_seeds"] == 2 and row["win_rate"] == 51.0
    empty = ["mt_bench", "mt_bench_se_items", "length_controlled_winrate", "test_accuracy", "train_seconds"]
    assert [row[key] for key in empty] == [None] * 5, "a mean over fewer seeds would pass for one over all"
    absent = build(tmp_path, ["dpo", "kto"], [0, 1])["kto"]
    assert {key: value for key, value in absent.items() if value} == {"method": "kto"}

    notes = "\n".join(captions.main_notes(study(["dpo", "kto"], [0, 1]), read_cells(tmp_path)))
    assert "Length control: unavailable: one length." in notes
    assert "Missing so far (mt_bench): dpo seed 0, kto seed 0, kto seed 1." in notes


def test_caption_says_what_scores_may_be_compared_with(tmp_path: Path) -> None:
    write(tmp_path, {"dpo/seed0/alpaca_eval/metrics.json": alpaca_eval(50.0, 1.0, judge="gpt-4-turbo")})
    cells = read_cells(tmp_path)
    local = "\n".join(captions.main_notes(study(["dpo"], [0]), cells))
    assert "local judge" in local and "never comparable with published" in local
    assert "not the official one" in local and "over 805 instructions" in local
    assert "dpo 24" in local, "lengths are shown with win rates"
    judge = {"kind": "openai", "model": "gpt-4-turbo"}
    requested = study(
        ["dpo"], [0], benchmarks={"judge": judge, "alpaca_eval": {"difficulty": "df_gamed.csv"}}
    )
    endpoint = "\n".join(captions.main_notes(requested, cells))
    assert "Published scores are of gpt-4-1106-preview, which was shut down on 2026-03-26." in endpoint
    assert "Judge: gpt-4-turbo." in endpoint and "df_gamed.csv" in endpoint and "MT-Bench:" not in endpoint
    alone = "\n".join(captions.main_notes(study(["dpo"], [0], benchmarks={}), cells))
    assert "left out by this study" in alone and "Judge" not in alone


class Page(html.parser.HTMLParser):
    """Tags and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words += data


def test_page_escapes_and_needs_no_other_file(tmp_path: Path) -> None:
    reason = "<script>alert('x')</script> & more"
    broken = alpaca_eval(50.0, 1.0, length_controlled_winrate=None, lc_unavailable=reason)
    write(tmp_path, {"dpo/seed0/alpaca_eval/metrics.json": broken})
    cells = read_cells(tmp_path)
    table = main_table.main_table(cells, ["dpo"], [0]).replace({"method": {"dpo": "<script>dpo"}})
    notes = captions.main_notes(study(["dpo"], [0]), cells)
    text = render.html("<script>title", render.readable_main(table, 1), notes)
    page = Page()
    page.feed(text)
    assert "script" not in page.tags and "link" not in page.tags and "img" not in page.tags
    assert reason in page.words and "<script>dpo" in page.words and "50.0" in page.words
    assert "http" not in text.replace("<!doctype html>", "")


def test_script_writes_four_forms_of_one_table(tmp_path: Path) -> None:
    root = write(
        tmp_path / "R",
        {
            "dpo/seed0/train_metrics.json": train(61.25, 1.5),
            "dpo/seed0/alpaca_eval/metrics.json": alpaca_eval(100 / 3, 1.5),
            "data/report.json": {"leak": {"prompts": 0, "test_pairs": 0}},
        },
    )
    outputs = {kind: tmp_path / "tables" / f"main.{kind}" for kind in ("csv", "md", "tex", "html")}
    run_script("main_table", study(["sft", "dpo"], [0]), root, outputs)
    sft, dpo = csv.DictReader(outputs["csv"].read_text().splitlines())
    assert list(dpo) == COLUMNS and sft["n_seeds"] == "0" and sft["win_rate"] == ""
    assert float(dpo["win_rate"]) == 100 / 3 and dpo["win_rate_se_seeds"] == ""
    text = outputs["md"].read_text()
    assert "| dpo | 32.3 ±2.5 | 33.3 ±1.5 | 61.2 ±1.5 |" in text, "without the empty column of MT-Bench"
    assert "| sft |" not in text, "and without the empty row of the reference"
    assert "- Leaks: no prompt of the training pairs is among the test pairs." in outputs["md"].read_text()
    assert r"33.3 $\pm$1.5 & 61.2 $\pm$1.5" in outputs["tex"].read_text()
    assert "33.3" in outputs["html"].read_text()
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == [
        "main.csv",
        "main.html",
        "main.md",
        "main.tex",
    ]


def test_number_of_seeds_is_shown_where_one_is_missing(tmp_path: Path) -> None:
    for seed in (0, 1):
        write(tmp_path / f"dpo/seed{seed}", {"alpaca_eval/metrics.json": alpaca_eval(50.0, 1.0)})
    write(tmp_path / "kto/seed0", {"alpaca_eval/metrics.json": alpaca_eval(50.0, 1.0)})
    cells = read_cells(tmp_path)
    for methods, shown in ((["dpo"], False), (["dpo", "kto"], True)):
        table = render.readable_main(main_table.main_table(cells, methods, [0, 1]), 2)
        assert ("seeds" in table.columns) is shown
        assert [row[1] for row in table.rows] == ([("2",), ("1",)] if shown else [("49.0", "±2.0", "(0.0)")])


def test_show_prints_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    settings = study(["sft", "dpo"], [0])
    with pytest.raises(UserError, match="tiny/world: no results yet; run the study"):
        show(tmp_path, settings)
    write(
        tmp_path / "tiny/world",
        {
            "sft/seed0/alpaca_eval/metrics.json": alpaca_eval(48.0, 1.0),
            "dpo/seed0/alpaca_eval/metrics.json": alpaca_eval(55.5, 1.0),
        },
    )
    show(tmp_path, settings)
    printed = capsys.readouterr().out
    assert "55.5" in printed and "±1.0" in printed and "local judge" in printed
    assert "dpo − sft" in printed, "the differences follow"
    assert max(map(len, printed.splitlines())) <= 80 and "…" not in printed


def test_numbers_for_reading() -> None:
    assert [render.number(value, 1) for value in (1234.56, -0.25, None, float("nan"), 3)] == [
        "1 234.6", "−0.2", "–", "–", "3.0",
    ]  # fmt: skip
