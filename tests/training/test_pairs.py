"""The record of the pairs, compared with transformers' own log-probs, with the log, and with the rounds."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import transformers

from sams.runtime.errors import UserError
from sams.training import pairs
from sams.training.batches import rounds
from sams.training.pairs import PairLog
from tests import tiny
from tests.training.test_runs import run, weights


def read(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "pairs.parquet")


def logged(out: Path) -> pd.DataFrame:
    return pd.read_json(out / "train.jsonl", lines=True).set_index("step")


def test_all_scored_pairs_and_the_evaluated_ones_are_recorded(
    prepared: dict[str, Path], tmp_path: Path
) -> None:
    run(prepared, tmp_path, evaluations=2)
    found, log, data = read(tmp_path), logged(tmp_path), tiny.pairs(64, seed=1)
    train = found[found["split"] == "train"]
    for step, batch in rounds(64, 16, 1, 0):
        rows = train[train["step"] == step]
        assert rows["id"].tolist() == [data["id"][item] for item in batch]
        assert rows["chosen_tokens"].tolist() == [len(data["chosen_ids"][item]) for item in batch]
        assert rows["flipped"].tolist() == [data["flipped"][item] for item in batch]
        assert rows["selected"].sum() == 8
        assert rows["margin"].mean() == pytest.approx(log.loc[step, "all/rewards/margins"], abs=1e-6)
        chosen = rows[rows["selected"] == True]  # noqa: E712
        assert chosen["margin"].mean() == pytest.approx(log.loc[step, "rewards/margins"], abs=1e-6)
        assert chosen["chosen_logp"].mean() == pytest.approx(log.loc[step, "logps/chosen"], rel=1e-6)
    gaps = {side: found[f"{side}_logp"] - found[f"reference_{side}_logp"] for side in ("chosen", "rejected")}
    assert (0.1 * (gaps["chosen"] - gaps["rejected"]) - found["margin"]).abs().max() < 1e-5
    assert train.loc[train["step"] == 1, "margin"].abs().max() < 1e-5 < train["margin"].abs().max()

    test = found[found["split"] == "test"]
    assert sorted(set(test["step"])) == [2, 4] and test["selected"].isna().all()
    last = test[test["step"] == 4].set_index("id")
    metrics = json.loads((tmp_path / "train_metrics.json").read_text())
    accuracy = ((last["margin"] > 0).mean() + (last["margin"] >= 0).mean()) / 2
    assert 100 * accuracy == pytest.approx(metrics["test_accuracy"])
    policy = transformers.AutoModelForCausalLM.from_pretrained(prepared["model"], dtype=torch.float32)
    trained = weights(tmp_path)
    policy.load_state_dict({name: trained[f"policy.model.{name}"] for name in policy.state_dict()})
    columns = tiny.pairs(24, seed=2)
    assert sorted(last.index) == sorted(columns["id"])
    for item, pair in enumerate(columns["id"]):
        for side in ("chosen", "rejected"):
            prompt, completion = columns["prompt_ids"][item], columns[f"{side}_ids"][item]
            with torch.no_grad():
                logits = policy(input_ids=torch.tensor([[*prompt, *completion]])).logits[
                    0, len(prompt) - 1 : -1
                ]
            logp = logits.log_softmax(1).gather(1, torch.tensor(completion)[:, None]).sum().item()
            assert last.loc[pair, f"{side}_logp"] == pytest.approx(logp, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ({"selector": "all", "ratio": 1.0, "epochs": 2, "max_steps": 8}, 128),
        ({"selector": "random"}, 32),
        ({"selector": "all", "ratio": 1.0, "loss": "simpo"}, 64),
    ],
)
def test_without_a_scoring_pass_the_pairs_trained_on_are_recorded(
    settings: dict[str, Any], rows: int, prepared: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(pairs, "GROUP", 50)
    run(prepared, tmp_path, **settings)
    found, log = read(tmp_path), logged(tmp_path)
    train = found[found["split"] == "train"]
    assert len(train) == rows and train["selected"].all()
    assert train.groupby("step")["margin"].mean().to_numpy() == pytest.approx(
        log["rewards/margins"], abs=1e-6
    )
    assert train["epoch"].tolist() == [1 if step <= 4 else 2 for step in train["step"]]
    assert set(train.groupby("id").size()) == {settings.get("epochs", 1)}
    assert found["reference_chosen_logp"].isna().all() == (settings.get("loss") == "simpo")


def test_rows_after_the_checkpoint_are_cut_and_missing_ones_are_refused(tmp_path: Path) -> None:
    task: Any = SimpleNamespace(ids=["a", "b", "c"])
    log = PairLog(tmp_path, task, task, test_split="test", epoch=1)
    values = {name: torch.arange(3.0) for name in (*pairs.VALUES.values(), "loss")}
    log.resume(0)
    log.evaluated(1, values)
    assert log.sync() == 3
    log.resume(2)
    assert log.sync() == 2
    with pytest.raises(UserError, match=r"pairs\.rows: 2 rows, but the checkpoint was written after 3"):
        log.resume(3)
