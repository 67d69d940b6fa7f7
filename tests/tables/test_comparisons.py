"""Differences between methods: items, pairing, intervals."""

import gzip
import random
import statistics
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from sams.runtime.errors import UserError
from sams.scoring.table import BENCHMARKS
from sams.tables import comparisons
from sams.tables.results import read_cells
from tests.tables.made import alpaca_eval, train, write


def preferences(values: dict[str, float | None]) -> list[dict[str, object]]:
    return [{"instruction": name, "preference": value} for name, value in values.items()]


def judgments(rows: list[tuple[int, int, float]], model: str = "dpo") -> list[dict[str, object]]:
    keys = ("question_id", "turn", "score")
    return [{**dict(zip(keys, row, strict=True)), "model": model} for row in rows]


def test_alpaca_eval_items(tmp_path: Path) -> None:
    values = {"win": 2.0, "loss": 1.0, "lean": 1.75, "draw": 1.5, "old draw": 0, "failed": None, "broken": -1}
    write(tmp_path, {"annotations.json": preferences(values)})
    items = BENCHMARKS["alpaca_eval"].items(tmp_path / "annotations.json")
    assert items == {"win_rate": {"win": 100.0, "loss": 0.0, "lean": 75.0, "draw": 50.0, "old draw": 50.0}}


def test_mt_bench_items(tmp_path: Path) -> None:
    write(tmp_path, {"judgments.jsonl": judgments([(81, 1, 7), (81, 2, 4), (82, 1, 9), (82, 2, -1)])})
    assert BENCHMARKS["mt_bench"].items(tmp_path / "judgments.jsonl") == {"mt_bench": {"81": 5.5}}


def test_judgments_of_two_models_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"judgments.jsonl": judgments([(81, 1, 7)]) + judgments([(81, 1, 3)], "other")})
    with pytest.raises(UserError, match=r"judgments\.jsonl: judgments of 2 models, expected one"):
        BENCHMARKS["mt_bench"].items(tmp_path / "judgments.jsonl")


def test_constant_difference_has_no_width() -> None:
    base = {str(n): float(n) for n in range(50)}
    method = {name: value + 10 for name, value in base.items()} | {"only here": 1000.0}
    assert comparisons.paired_difference(method, base) == (10.0, 10.0, 10.0, 50)


def test_pairing_removes_what_both_share() -> None:
    """Items differ much, the methods little: only the spread of the differences counts."""
    draw = random.Random(0)
    base = {str(n): draw.gauss(50, 30) for n in range(805)}
    change = {name: draw.gauss(2, 4) for name in base}
    difference, low, high, number = comparisons.paired_difference(
        {name: value + change[name] for name, value in base.items()}, base
    )
    error = statistics.stdev(change.values()) / 805**0.5
    assert number == 805 and difference == pytest.approx(statistics.fmean(change.values()))
    assert low == pytest.approx(difference - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(difference + 1.96 * error, abs=0.1 * error)
    again = comparisons.paired_difference({name: base[name] + change[name] for name in base}, base)
    assert again == (difference, low, high, number), "the same figures from the same files"


@pytest.mark.parametrize("count", [2, 3, 80, 805])
def test_intervals_are_percentiles_of_means_of_resampled_items(count: int) -> None:
    """To the last bit those of the resampling written out, whose figures were published."""
    values = np.random.default_rng(count).normal(2.0, 30.0, count)
    generator = np.random.default_rng(0)
    means = [values[generator.integers(count, size=(500, count))].mean(axis=1) for _ in range(20)]
    found = comparisons.paired_difference(
        {str(n): float(v) for n, v in enumerate(values)}, dict.fromkeys(map(str, range(count)), 0.0)
    )
    assert found == (values.mean(), *np.percentile(np.concatenate(means), [2.5, 97.5]), count)


def test_one_item_has_no_width() -> None:
    assert comparisons.paired_difference({"a": 3.0}, {"a": 1.0}) == (2.0, 2.0, 2.0, 1)


def test_table_of_two_seeds(tmp_path: Path) -> None:
    """Two seeds and two instructions: seeds are averaged per item, items that a seed lacks are left out."""
    files = {
        "sft/seed0": {"a": 1.0, "b": 1.5},
        "sft/seed1": {"a": 1.0, "b": 1.5},
        "dpo/seed0": {"a": 1.5, "b": 2.0, "c": 2.0},
        "dpo/seed1": {"a": 1.25, "b": 1.75},
        "dpo-sams/seed0": {"a": 2.0, "b": 2.0},
    }
    for folder, values in files.items():
        write(tmp_path / folder, {"alpaca_eval/annotations.json": preferences(dict(values))})
    table = comparisons.comparisons(tmp_path, {}, ["sft", "dpo", "dpo-sams"], [0, 1])
    found = {(row.method, row.base): row for row in table.itertuples()}
    assert list(found) == [("dpo", "sft"), ("dpo-sams", "sft"), ("dpo-sams", "dpo")]
    dpo = found["dpo", "sft"]
    assert (dpo.difference, dpo.ci_low, dpo.ci_high) == (37.5, 37.5, 37.5), "(50 + 25) / 2 on both items"
    assert (dpo.n_items, dpo.n_seeds, dpo.interval, dpo.excludes_zero) == (2, 2, "paired", True)
    assert (found["dpo-sams", "dpo"].difference, found["dpo-sams", "dpo"].n_seeds) == (25.0, 1)


def record(folder: Path, margins: dict[str, float], *, step: int = 4) -> None:
    """A pairs.parquet whose test pairs have these margins at the end, and others before."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"id": pair, "split": "test", "step": 2, "margin": -margin} for pair, margin in margins.items()]
    rows += [
        {"id": pair, "split": "test", "step": step, "margin": margin} for pair, margin in margins.items()
    ]
    rows += [{"id": "train", "split": "train", "step": step, "margin": 1.0}]
    pd.DataFrame(rows).to_parquet(folder / "pairs.parquet")


def test_test_accuracies_are_compared_pair_by_pair(tmp_path: Path) -> None:
    """Two methods that are right about mostly the same pairs, against scipy's interval of paired differences."""
    draw = np.random.default_rng(0)
    easy, other = draw.normal(size=400), draw.normal(scale=0.2, size=400)
    margins = {"dpo": easy, "dpo-sams": easy - 0.1 + other}
    for method, values in margins.items():
        record(tmp_path / method / "seed0", {f"{n:016x}": float(value) for n, value in enumerate(values)})
        right = float(100 * (values > 0).mean())
        write(tmp_path, {f"{method}/seed0/train_metrics.json": train(right, 2.5)})
    table = comparisons.comparisons(tmp_path, read_cells(tmp_path), ["dpo", "dpo-sams"], [0])
    [row] = [row for row in table.itertuples() if row.benchmark == "test_accuracy"]
    right = {method: 100.0 * (values > 0) for method, values in margins.items()}
    paired = ttest_rel(right["dpo-sams"], right["dpo"]).confidence_interval()
    assert (row.interval, row.n_items, row.n_seeds) == ("paired", 400, 1)
    assert row.difference == pytest.approx(right["dpo-sams"].mean() - right["dpo"].mean())
    assert (row.ci_low, row.ci_high) == pytest.approx(tuple(paired), abs=0.4)
    unpaired = 1.96 * np.hypot(2.5, 2.5)
    assert row.ci_high - row.ci_low < unpaired, "half as wide"


def test_a_tie_is_half_right_and_seeds_with_test_pairs_of_their_own_are_paired_within_a_seed(
    tmp_path: Path,
) -> None:
    for seed in (0, 1):
        record(tmp_path / f"dpo/seed{seed}", {f"{seed}a": 0.0, f"{seed}b": 1.0, "shared": -1.0})
        record(tmp_path / f"ipo/seed{seed}", {f"{seed}b": 2.0, f"{seed}a": 0.5, "shared": 1.0 - 2 * seed})
    table = comparisons.comparisons(tmp_path, {}, ["dpo", "ipo"], [0, 1])
    [row] = table.itertuples()
    # 0a and 1a: 50 each, 0b and 1b: 0, shared: 100 and 0.
    assert (row.difference, row.n_items, row.n_seeds) == (30.0, 5, 2)


def test_scores_without_items_have_unpaired_intervals(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "sft/seed0/alpaca_eval/metrics.json": alpaca_eval(40.0, 2.0),
            "dpo/seed0/alpaca_eval/metrics.json": alpaca_eval(50.0, 3.0),
            "dpo/seed0/train_metrics.json": train(60.0, 3.0),
            "dpo-sams/seed0/train_metrics.json": train(62.0, 4.0),
        },
    )
    table = comparisons.comparisons(tmp_path, read_cells(tmp_path), ["sft", "dpo", "dpo-sams"], [0])
    rows = [row for row in table.itertuples() if row.interval == "unpaired"]
    assert [(row.benchmark, row.method, row.base) for row in rows] == [
        ("length_controlled_winrate", "dpo", "sft"),
        ("test_accuracy", "dpo-sams", "dpo"),
    ]
    length_controlled, accuracy = rows
    assert length_controlled.difference == 10.0
    assert length_controlled.ci_low == pytest.approx(10 - 1.96 * 5), "errors 3 and 4, over instructions"
    assert accuracy.ci_high == pytest.approx(2 + 1.96 * 5) and not accuracy.excludes_zero


def test_no_items_no_rows(tmp_path: Path) -> None:
    table = comparisons.comparisons(tmp_path, {}, ["sft", "dpo"], [0, 1])
    assert table.empty and list(table) == comparisons.COLUMNS


def test_items_of_recorded_annotations_give_the_published_win_rates(
    tmp_path: Path, shared_data: Path
) -> None:
    items = {}
    for model, rate in (("gemma-7b-it", 6.937294), ("OpenHermes-2.5-Mistral-7B", 10.340416)):
        path = tmp_path / f"{model}.json"
        path.write_bytes(
            gzip.decompress((shared_data / "alpaca_eval/open" / model / "annotations.json.gz").read_bytes())
        )
        items[model] = BENCHMARKS["alpaca_eval"].items(path)["win_rate"]
        assert len(items[model]) == 805
        assert statistics.fmean(items[model].values()) == pytest.approx(rate, abs=1e-6)
    difference, low, high, _ = comparisons.paired_difference(
        items["OpenHermes-2.5-Mistral-7B"], items["gemma-7b-it"]
    )
    assert difference == pytest.approx(10.340416 - 6.937294, abs=1e-5) and 0 < low < difference < high


def test_seeds_are_repeats(tmp_path: Path) -> None:
    """Three seeds whose differences are 1, 2 and 3 points: a t interval over seeds, next to the one over items."""
    for seed in range(3):
        write(
            tmp_path,
            {
                f"sft/seed{seed}/train_metrics.json": {"train_seconds": 1.0},
                f"dpo/seed{seed}/train_metrics.json": train(60.0 + 5 * seed, 1.5),
                f"dpo-sams/seed{seed}/train_metrics.json": train(61.0 + 6 * seed, 1.5),
            },
        )
    cells = read_cells(tmp_path)
    table = comparisons.comparisons(tmp_path, cells, ["sft", "dpo", "dpo-sams"], [0, 1, 2])
    [row] = table[table["interval"] == "over seeds"].itertuples()
    assert (row.benchmark, row.method, row.base, row.n_seeds) == ("test_accuracy", "dpo-sams", "dpo", 3)
    assert row.difference == 2.0 and row.p_sign_flip == 0.25
    assert row.ci_low == pytest.approx(2.0 - 4.3027 / 3**0.5, abs=1e-4), "t of 2 degrees of freedom"
    assert row.p_t == pytest.approx(0.0742, abs=1e-4)
    assert table.loc[table["interval"] != "over seeds", ["p_t", "p_sign_flip"]].isna().all(axis=None)
    one = comparisons.comparisons(tmp_path, cells, ["sft", "dpo", "dpo-sams"], [1])
    assert "over seeds" not in set(one["interval"])


def test_rewards_are_compared_by_difference_and_by_wins_of_each_seed(tmp_path: Path) -> None:
    """By hand, over prompts a, b, c: differences 2, -1, 0 and 4, 0, 0; wins 100, 0, 50 and 100, 50, 50."""
    of_seed = {0: ({"a": 3.0, "b": 0.0, "c": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}), 1: None}
    of_seed[1] = ({"a": 5.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0, "d": 9.0})
    for seed, rewards in of_seed.items():
        for method, values in zip(("dpo", "sft"), rewards, strict=True):
            rows = [{"id": name, "reward": value} for name, value in values.items()]
            folder = f"{method}/seed{seed}/reward_model"
            rows += [{"id": "long", "reward": None}]
            metrics = {"reward": statistics.fmean(values.values()), "reward_se": 0.5}
            write(tmp_path, {f"{folder}/rewards.jsonl": rows, f"{folder}/metrics.json": metrics})
    table = comparisons.comparisons(tmp_path, read_cells(tmp_path), ["sft", "dpo"], [0, 1])
    rows = table.set_index(["benchmark", "interval"]).to_dict("index")
    assert rows.keys() == {("reward", "paired"), ("reward_win_rate", "paired"), ("reward", "over seeds")}
    assert rows["reward", "paired"]["difference"] == pytest.approx((3 - 0.5 + 0) / 3)
    assert rows["reward_win_rate", "paired"]["difference"] == pytest.approx((100 + 25 + 50) / 3 - 50)
    assert rows["reward_win_rate", "paired"]["n_items"] == 3
