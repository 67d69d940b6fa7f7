"""Results as data frames."""

from pathlib import Path

import pytest

from sams.runtime.errors import UserError
from sams.tables import results
from tests.tables.made import alpaca_eval, mt_bench, train, write


def test_every_run_is_a_row(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "tiny/world/dpo/seed3/train_metrics.json": train(60.0, 1.5),
            "tiny/world/dpo/seed3/mt_bench/metrics.json": mt_bench(5.5, 0.2),
            "tiny/world/dpo/seed10/train_metrics.json": train(62.0, 1.5),
            "own/hh/sft/seed0/alpaca_eval/metrics.json": alpaca_eval(50.0, 1.0, lc_unavailable="no table"),
            "tiny/tables/main.json": {"a": 1},
            "tiny/world/questions/source.json": {"a": 1},
        },
    )
    frame = results.load(tmp_path)
    places = list(frame[["study", "setting", "method", "seed"]].itertuples(index=False, name=None))
    assert sorted(places) == [
        ("own", "hh", "sft", 0), ("tiny", "world", "dpo", 3), ("tiny", "world", "dpo", 10),
    ]  # fmt: skip
    of_dpo = frame[frame["method"] == "dpo"].set_index("seed")
    assert of_dpo.loc[3, "mt_bench/categories/math"] == 5.5
    assert of_dpo["train/test_accuracy"].to_dict() == {3: 60.0, 10: 62.0}
    assert of_dpo["alpaca_eval/win_rate"].isna().all() and "alpaca_eval/judge" not in frame
    assert frame.groupby("method")["train/test_accuracy"].mean()["dpo"] == 61.0
    assert frame.drop(columns=["study", "setting", "method"]).dtypes.map(str).isin(["int64", "float64"]).all()


def test_no_results_is_an_empty_frame(tmp_path: Path) -> None:
    empty = results.load(tmp_path / "absent")
    assert empty.empty and list(empty) == ["study", "setting", "method", "seed"]


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[1]", "a JSON object was expected")])
def test_broken_metrics_are_reported_with_their_file(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, {"tiny/world/dpo/seed0/train_metrics.json": {}})
    (path / "tiny/world/dpo/seed0/train_metrics.json").write_text(text)
    with pytest.raises(UserError, match=rf"dpo/seed0/train_metrics\.json: {message}"):
        results.load(tmp_path)


def test_log_without_the_end_of_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "train.jsonl"
    log.write_text('{"step": 1, "pairs_seen": 64, "loss": 0.5}\n{"step": 2, "pairs_seen": 128, "lo')
    assert results.read_log(log).to_dict("list") == {"step": [1], "pairs_seen": [64], "loss": [0.5]}
    log.write_text("")
    assert list(results.read_log(log)) == ["step", "pairs_seen"]


def test_log_with_a_broken_line_names_the_row(tmp_path: Path) -> None:
    log = tmp_path / "train.jsonl"
    log.write_text('{"step": 1, "pairs_seen": 64}\nnonsense\n')
    with pytest.raises(UserError, match=r"train\.jsonl, row 2: not JSON"):
        results.read_log(log)
