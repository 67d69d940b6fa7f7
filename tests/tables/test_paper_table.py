"""The study's figures compared with the paper's: which are shown, and the reasons for gaps."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from sams.runtime.errors import UserError
from sams.study.reported import FOLDER, read_reported
from sams.study.settings import Paper
from sams.study.study import Study
from sams.tables import captions, paper_table, render
from sams.tables.results import read_cells
from tests.tables.made import alpaca_eval, mt_bench, run_script, study, train, write

GPT = "gpt-4-1106-preview"
TABLE1 = {"table": "table1", "setting": "llama3-instruct"}
TABLE2 = {"table": "table2", "setting": "pythia-2.8b-hh"}


def real(methods: list[str], seeds: list[int], paper: dict[str, Any], **changes: Any) -> Study:
    """A study of a model and data that are not made up, judged by GPT-4 Turbo."""
    settings: dict[str, Any] = {
        "paper": paper,
        "model": {"path": "a/model"},
        "data": {"train": "a/set:train", "test": "a/set:test"},
        "sft": None,
        "benchmarks": {
            "judge": {"kind": "openai", "model": GPT},
            "alpaca_eval": {"reference_outputs": "o.json", "difficulty": "d.csv"},
            "mt_bench": {},
        },
    }
    return study(methods, seeds, **{**settings, **changes})


def build(settings: Study, root: Path) -> dict[tuple[str, str], dict[str, Any]]:
    table = paper_table.paper_table(settings, root, read_cells(root))
    records = table.astype(object).where(table.notna(), None).to_dict("records")
    return {(record["row"], record["score"]): record for record in records}


def test_reported_figures_are_the_paper_s(shared_data: Path) -> None:
    spec = yaml.safe_load((shared_data.parent / "spec" / "paper_results.yaml").read_text(encoding="utf-8"))
    names = {"lc": "length_controlled_winrate", "wr": "win_rate", "mt": "mt_bench"}
    checked = 0
    for table in ("table1", "table2", "table3"):
        for row, settings in spec[table]["rows"].items():
            for setting, values in settings.items():
                columns = [names.get(column, column) for column in spec[table]["columns"]]
                expected = {c: v for c, v in zip(columns, values, strict=True) if v is not None}
                reported = read_reported(table, setting).rows[row]
                assert {column: figure.value for column, figure in reported.items()} == expected
                checked += len(expected)
    for setting, values in spec["table1"]["reported_elsewhere"]["simpo"].items():
        reported = read_reported("table1", setting).rows["simpo"]
        assert [figure.value for figure in reported.values()] == values
        assert {figure.source for figure in reported.values()} == {"SimPO repository, published table"}
    for row, settings in spec["figure3"]["rows"].items():
        for setting, (clean, flipped) in settings.items():
            reported = read_reported("figure3", setting).rows
            assert reported[row]["test_accuracy"].value == clean
            assert reported[f"{row}-flip20"]["test_accuracy"].value == flipped
    table7 = read_reported("table7", "pythia-2.8b-hh").rows
    for ratio, value in spec["table7"]["selected_ratio"].items():
        assert table7[f"ratio-{100 * ratio:.0f}"]["test_accuracy"].value == value
    nets = spec["table7"]["exploration_network"]
    assert [table7[f"exploration-{word}"]["test_accuracy"].value for word in ("on", "off")] == [
        *nets.values()
    ]
    assert checked == 160, "figures of tables 1, 2 and 3"


def test_every_file_is_complete_and_every_table_is_accepted() -> None:
    tables = Paper.model_json_schema()["properties"]["table"]["enum"]
    assert sorted(path.stem for path in FOLDER.glob("*.yaml")) == sorted(tables)
    for table in tables:
        content = yaml.safe_load((FOLDER / f"{table}.yaml").read_text(encoding="utf-8"))
        for setting in content["settings"]:
            reported = read_reported(table, setting)
            assert set(reported.columns) <= set(paper_table.BENCHMARK_OF)
            assert "2506.17252" in reported.source


@pytest.mark.parametrize(
    ("paper", "reason"),
    [
        ({"table": "table4", "setting": "x"}, "paper.table"),
        ({"table": "table2", "setting": "llama3"}, "Table 2 has no setting llama3: it has pythia-2.8b-hh"),
        ({**TABLE2, "rows": {"dpo": "d-p-o"}}, "Table 2 has no row d-p-o: it has dpo, dpo-sams"),
        ({**TABLE2, "rows": {"ipo": "dpo"}}, "`paper.rows` names 'ipo', which is not among the methods"),
    ],
)
def test_a_table_that_the_paper_lacks_stops_the_parse(paper: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        real(["sft", "dpo"], [0], paper)


def test_reported_reproduced_and_difference(tmp_path: Path) -> None:
    for seed, accuracy in enumerate([60.0, 63.0, 66.0]):
        write(
            tmp_path / f"dpo/seed{seed}",
            {"train_metrics.json": {**train(accuracy, 1.5), "chosen_reward": -8.0}},
        )
        (tmp_path / f"dpo/seed{seed}/mlflow_run_id").write_text(f"{seed:032x}\n")
    row = build(real(["sft", "dpo"], [0, 1, 2], TABLE2), tmp_path)["dpo", "test_accuracy"]
    assert (row["reported"], row["reproduced"], row["n_seeds"]) == (64.3, 63.0, 3)
    assert row["difference"] == pytest.approx(-1.3)
    assert row["se_seeds"] == pytest.approx(3**0.5) and row["se_items"] == pytest.approx(1.5)
    assert row["source"] == "arXiv 2506.17252, Table 2"
    assert row["run_ids"].split() == [f"seed{seed}:{seed:032x}" for seed in range(3)]
    assert not any(row[f"{kind}_missing"] for kind in ("reported", "reproduced", "difference"))


def test_every_gap_says_why(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "dpo/seed0/train_metrics.json": train(60.0, 1.5),
            "dpo/seed1/train_metrics.json": train(60.0, 1.5),
            "dpo/seed0/alpaca_eval/metrics.json": alpaca_eval(
                40.0, 1.0, judge=GPT, length_controlled_winrate=None, lc_unavailable="one length"
            ),
            "dpo/seed1/alpaca_eval/metrics.json": alpaca_eval(42.0, 1.0, judge=GPT),
            "dpo/seed0/mt_bench/metrics.json": {**mt_bench(7.1, 0.2), "judge": GPT},
        },
    )
    rows = build(real(["sft", "dpo", "dpo-top"], [0, 1], TABLE1), tmp_path)
    assert rows["dpo", "win_rate"]["difference"] == pytest.approx(41.0 - 37.9)
    assert rows["dpo", "length_controlled_winrate"]["reproduced_missing"] == "unavailable: one length"
    assert rows["dpo", "mt_bench"]["reproduced_missing"] == "not run: score_mt_bench, seed 1"
    assert rows["dpo", "mt_bench"]["reported"] == 7.0, "shown before the study has a score"
    assert rows["dpo-top", "win_rate"]["reported_missing"] == "not in the paper's Table 1"
    assert rows["dpo-top", "win_rate"]["reproduced_missing"] == "not run: score_alpaca_eval, seed 0, 1"
    assert rows["kto", "win_rate"]["reproduced_missing"] == "no method of this study"
    assert rows["kto", "win_rate"]["reported"] == 31.8
    assert rows["simpo", "mt_bench"]["reported_missing"] == "not reported"
    for row in rows.values():
        for kind in ("reported", "reproduced"):
            assert (row[kind] is None) == bool(row[f"{kind}_missing"])
    alone = build(real(["sft", "dpo"], [0], TABLE2, benchmarks={}), tmp_path)
    assert alone["sft", "test_accuracy"]["reproduced_missing"] == "sft is the reference"
    dropped = build(real(["sft", "dpo"], [0], TABLE1, benchmarks={}), tmp_path / "absent")
    assert dropped["dpo", "mt_bench"]["reproduced_missing"] == "mt_bench is left out by this study"


@pytest.mark.parametrize(
    ("judge", "changes", "reason"),
    [
        ("local", {"benchmarks": {"judge": {"kind": "local"}, "alpaca_eval": {}}, "world": {}}, "synthetic"),
        ("llama-judge", {}, "judged by llama-judge"),
        (GPT, {"model": {"architecture": {"model_type": "llama"}, "tokenizer": "bpe"}}, "from scratch"),
    ],
)
def test_scores_that_are_not_comparable_are_never_shown(
    judge: str, changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    if "world" in changes:
        changes = {**changes, "data": {"world": {}, "max_length": 64, "max_prompt_length": 32}, "sft": {}}
        del changes["world"]
    write(tmp_path, {"dpo/seed0/alpaca_eval/metrics.json": alpaca_eval(50.0, 1.0, judge=judge)})
    settings = real(["sft", "dpo"], [0], TABLE1, **changes)
    row = build(settings, tmp_path)["dpo", "win_rate"]
    assert row["reproduced"] == 50.0
    assert row["reported"] is None and row["difference"] is None
    assert reason in row["reported_missing"]
    table = paper_table.paper_table(settings, tmp_path, read_cells(tmp_path))
    assert "37.9" not in render.markdown("t", *_with_notes(settings, table, tmp_path))


def test_a_requested_judge_counts_before_it_has_judged(tmp_path: Path) -> None:
    """The reader learns before the run that scores will not be comparable."""
    benchmarks = {"judge": {"kind": "openai", "model": "llama-judge"}, "alpaca_eval": {}}
    row = build(real(["sft", "dpo"], [0], TABLE1, benchmarks=benchmarks), tmp_path)["dpo", "win_rate"]
    assert row["reported"] is None and "llama-judge" in row["reported_missing"]


def test_hours_count_what_prepared_the_training(tmp_path: Path) -> None:
    figures = {**train(60.0, 1.0, seconds=5400.0), "preparation_seconds": 1800.0}
    write(tmp_path, {"selective-dpo/seed0/train_metrics.json": figures})
    paper = {"table": "table3", "setting": "llama3-instruct"}
    row = build(real(["sft", "selective-dpo"], [0], paper), tmp_path)["selective-dpo", "hours"]
    assert (row["reproduced"], row["reported"], row["difference"]) == (2.0, 7.2, None)
    assert row["difference_missing"] == "hours of other hardware"


def test_a_method_may_reproduce_two_rows(tmp_path: Path) -> None:
    rows = {"dpo-sams": ["ratio-50", "exploration-on"], "dpo": "ratio-100"}
    paper = {"table": "table7", "setting": "pythia-2.8b-hh", "rows": rows}
    write(tmp_path, {"dpo-sams/seed0/train_metrics.json": train(66.0, 1.0)})
    found = build(real(["sft", "dpo", "dpo-sams"], [0], paper), tmp_path)
    assert [row for row, _ in found] == [
        "sft", "ratio-100", "ratio-50", "exploration-on", "ratio-25", "ratio-75", "exploration-off",
    ]  # fmt: skip
    assert found["ratio-50", "test_accuracy"]["difference"] == -1.0
    assert found["exploration-on", "test_accuracy"]["method"] == "dpo-sams"


def _with_notes(settings: Study, table: Any, root: Path) -> tuple[render.Readable, list[str]]:
    readable, reasons = render.readable_paper(table)
    return readable, reasons + captions.paper_notes(settings, read_cells(root), table)


def test_script_writes_four_forms(tmp_path: Path) -> None:
    root = write(
        tmp_path / "R",
        {
            "dpo/seed0/train_metrics.json": train(60.25, 1.5),
            "data/report.json": {"leak": {"prompts": 2, "test_pairs": 3}},
        },
    )
    outputs = {kind: tmp_path / "T" / f"paper.{kind}" for kind in ("csv", "md", "tex", "html")}
    settings = real(["sft", "dpo"], [0], TABLE2)
    run_script("paper_table", settings, root, outputs)
    rows = list(csv.DictReader(outputs["csv"].read_text().splitlines()))
    assert list(rows[0]) == paper_table.COLUMNS
    [dpo] = [row for row in rows if (row["row"], row["score"]) == ("dpo", "test_accuracy")]
    assert math.isclose(float(dpo["difference"]), 60.25 - 64.3) and dpo["run_ids"] == "seed0:untracked"
    text = outputs["md"].read_text()
    assert "| dpo | 1 | 64.3 | 60.2 ±1.5 | −4.0 |" in text
    assert "| kto | 0 | 60.2 | – [3] | – |" in text and "- [3] no method of this study." in text
    assert "2 prompts of the training pairs are also in 3 test pairs" in text
    tex = outputs["tex"].read_text()
    assert r"dpo & 1 & 64.3 & 60.2 $\pm$1.5 & $-$4.0 &" in tex and r"\toprule" in tex
    assert r"kto & 0 & 60.2 & -- {[}3]" in tex
    assert "64.3" in outputs["html"].read_text()


def test_latex_escapes_what_it_would_read_as_commands() -> None:
    table = render.Readable(["a_b", "n"], [[("50 % & more",), ("−1.0", "±0.5")]])
    text = render.latex("x_y {z} \\ ~", table, ["5 % √2"])
    body = text.split("\\midrule\n")[1].splitlines()[0]
    assert body == r"50 \% \& more & $-$1.0 $\pm$0.5 \\"
    assert r"\caption{x\_y \{z\} \textbackslash{} \textasciitilde{}}" in text and r"5 \% $\surd$2\par" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
