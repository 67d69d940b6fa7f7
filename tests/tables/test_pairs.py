"""Reader, page, figure and command of the record of pairs."""

import io
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from sams.runtime.errors import UserError
from sams.tables.pairs import by_pair, read_pairs, texts
from sams.tables.pairs_figure import pair_margins
from sams.tables.pairs_page import page, show
from tests.tables.made import run_script, study

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>\x1b[31m'
COUNT = 60


def record(run: Path, *, seed: int = 0, flipped: Any = None) -> None:
    """A pairs.parquet of 60 pairs, each seen twice, with margins 0 and n - 30 + seed; those above 30 are selected."""
    rows = [
        {
            "id": f"{pair:016x}",
            "split": "train",
            "step": 1 + pair // 20 + 3 * epoch,
            "epoch": 1 + epoch,
            "margin": epoch * (pair - 30.0 + seed),
            "selected": pair > 30,
            "flipped": flipped if flipped is None else pair % flipped == 0,
            "chosen_logp": -5.0,
            "rejected_logp": -5.0,
            "chosen_tokens": 3,
            "rejected_tokens": 4,
        }
        for epoch in (0, 1)
        for pair in range(COUNT)
    ]
    rows += [{**rows[-1], "id": "test", "split": "test", "selected": None, "flipped": None}]
    run.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows).astype({"selected": "boolean", "flipped": "boolean"})
    frame.to_parquet(run / "pairs.parquet")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """The folder of a setting with one method of two seeds, and its data."""
    for seed in (0, 1):
        record(tmp_path / f"dpo/seed{seed}", seed=seed)
    (tmp_path / "data").mkdir()
    prompts = [[{"role": "user", "content": f"Prompt {pair} {HOSTILE}"}] for pair in range(COUNT)]
    pd.DataFrame(
        {
            "id": [f"{pair:016x}" for pair in range(COUNT)],
            "prompt": prompts,
            "chosen": [f"good {pair}" for pair in range(COUNT)],
            "rejected": [f"bad {pair}" for pair in range(COUNT)],
            "flipped": pd.array([None] * COUNT, dtype="boolean"),
        }
    ).to_parquet(tmp_path / "data/train.parquet")
    return tmp_path


def test_the_reader_selects_rows_and_columns_and_flags_may_be_missing(results: Path) -> None:
    found = read_pairs(results / "dpo/seed0")
    assert len(found) == 2 * COUNT + 1 and found["selected"].isna().sum() == 1
    test = read_pairs(results / "dpo/seed0", ["id", "step"], split="test")
    assert list(test.columns) == ["id", "step"] and test["id"].tolist() == ["test"]
    with pytest.raises(UserError, match=r"sft/seed0/pairs\.parquet: no record of pairs; give the folder"):
        read_pairs(results / "sft/seed0")
    (results / "dpo/seed0/pairs.parquet").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"dpo/seed0/pairs\.parquet: cannot be read"):
        read_pairs(results / "dpo/seed0")


def test_pairs_are_sorted_by_the_margin_when_last_seen_in_the_mean_over_seeds(results: Path) -> None:
    found = by_pair([read_pairs(results / f"dpo/seed{seed}") for seed in (0, 1)])
    assert list(found.index) == [f"{pair:016x}" for pair in range(COUNT)]
    row = found.loc[f"{50:016x}"]
    assert (row["first"], row["last"], row["seen"], row["selected"]) == (0.0, 20.5, 4, 4)
    assert pd.isna(row["flipped"]) and found["selected"].sum() == 4 * 29


def test_texts_are_those_that_the_run_was_trained_on(results: Path) -> None:
    record(results / "dpo/seed0", flipped=2)
    run = results / "dpo/seed0"
    found = texts(run, by_pair([read_pairs(run)]).head(2))
    assert (found[f"{0:016x}"]["chosen"], found[f"{1:016x}"]["chosen"]) == ("bad 0", "good 1")


def test_the_page_shows_both_ends_and_escapes_texts(results: Path) -> None:
    html = page(study(["sft", "dpo"], [0, 1]), results, "dpo")
    ids = [int(pair, 16) for pair in re.findall(r"<span>([0-9a-f]{16})</span>", html)]
    assert ids == [*range(25), *range(59, 34, -1)]
    assert "margin −29.500" in html and "trained on in 0 of 4 rounds" in html
    assert "<script" not in html and "<img" not in html and "&lt;script&gt;alert(1)" in html
    assert "default-src 'none'" in html and not re.search(r"(src|href)=\"(?!#)", html)


def test_the_command_prints_both_ends_within_80_columns_and_writes_all_pairs(results: Path) -> None:
    console = Console(file=io.StringIO(), width=80)
    show(results / "dpo/seed0", console, count=2, out=results / "out.csv")
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, printed.splitlines())) <= 80 and "\x1b" not in printed
    assert printed.index("Prompt 0 ") < printed.index("Prompt 1 ") < printed.index("Prompt 59 ")
    assert "−30.000" in printed and "0/2" in printed
    assert re.search(r"least trusted tenth +6 +−27\.500 +100\.0 % +0\.0 % +7", printed)
    written = pd.read_csv(results / "out.csv", index_col="id")
    assert len(written) == COUNT and written["chosen"].iloc[-1] == "good 59"
    with pytest.raises(UserError, match=r"out\.txt: expected a name that ends in \.csv or \.parquet"):
        show(results / "dpo/seed0", console, count=2, out=results / "out.txt")


def test_the_figure_shows_margins_of_each_method_and_what_selectors_take(results: Path) -> None:
    record(results / "oracle/seed0", flipped=3)
    records = {name: [read_pairs(results / f"{name}/seed0")] for name in ("dpo", "oracle")}
    figure = pair_margins(records)
    margins, swapped, shares = figure.axes[:3]
    assert margins.get_legend_handles_labels()[1] == ["at the start", "at the end"]
    assert swapped.get_legend_handles_labels()[1][-1] == "at the end, labels swapped"
    line = shares.get_lines()[0].get_ydata()
    # Only rounds 2 and 5 choose: pairs 31 to 39 of 20 to 39. At first all margins are tied, at last they rank.
    assert line[-1] > line[0] and line.max() <= 1
    records["dpo"][0]["selected"] = True
    assert len([axis for axis in pair_margins({"dpo": records["dpo"]}).axes if axis.get_visible()]) == 1


def test_scripts_write_page_and_figure(results: Path) -> None:
    made = study(["sft", "dpo"], [0, 1])
    run_script("pairs_page", made, results, {"html": results / "page.html"}, method="dpo")
    run_script("pairs_figure", made, results, {kind: results / f"f.{kind}" for kind in ("svg", "png")})
    assert all((results / name).stat().st_size > 1000 for name in ("page.html", "f.svg", "f.png"))
