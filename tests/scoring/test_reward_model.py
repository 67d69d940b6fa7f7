"""Rewards of answers, as transformers' own classifier gives them, and wins over the start model."""

import json
import statistics
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
import transformers
from pyarrow import parquet

from sams.launch.preflight import check_reward_source, reward_models
from sams.runtime.errors import UserError
from sams.scoring.reward_model import main, score_reward_model
from sams.scoring.wins import wins
from sams.study.recipes import RewardRecipe
from sams.study.settings import Model
from tests.generation.conftest import make_model
from tests.generation.test_on_policy import make_reward_model
from tests.study.test_config import tiny_study

TEXTS = ["sort this list", "what is a", "reverse a b c"]
ANSWERS = {"dpo": ["a b", "which", ""], "sft": ["a b", "a", "a " * 200]}


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_reward_model(tmp_path_factory.mktemp("reward"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Prepared test pairs, and answers of two models to them in another order."""
    prompts = [[{"role": "user", "content": text}] for text in TEXTS]
    parquet.write_table(pa.table({"id": ["p0", "p1", "p2"], "prompt": prompts}), tmp_path / "test.parquet")
    for name, texts in ANSWERS.items():
        rows = [{"id": f"p{place}", "answer": texts[place]} for place in (2, 0, 1)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@torch.no_grad()
def theirs(folder: Path, prompt: str, answer: str) -> float:
    """Return the score of one conversation alone, by transformers' own classifier."""
    model: Any = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt")["input_ids"]
    return float(model(input_ids=ids).logits[0, 0])


def test_rewards_are_transformers_own_and_wins_are_over_the_start(reward_model: Path, data: Path) -> None:
    recipe = RewardRecipe(model=str(reward_model), precision="float32", batch_size=2)
    start = data / "start.jsonl"
    of_start = score_reward_model(data / "sft.jsonl", data, recipe, start)
    assert "win_rate" not in of_start and (of_start["n_answers"], of_start["n_too_long"]) == (3, 1)
    main(data / "dpo.jsonl", data, recipe.model_dump_json(), data / "m.json", data / "r.jsonl", start)
    found = json.loads((data / "m.json").read_text())
    expected = [theirs(reward_model, *pair) for pair in zip(TEXTS, ANSWERS["dpo"], strict=True)]
    rows = {row["id"]: row["reward"] for row in map(json.loads, (data / "r.jsonl").read_text().splitlines())}
    assert [rows[f"p{place}"] for place in range(3)] == pytest.approx(expected, abs=1e-5)
    assert len(set(expected)) == 3
    assert found["reward"] == pytest.approx(statistics.fmean(expected), abs=1e-5)
    assert found["reward_se"] == pytest.approx(statistics.stdev(expected) / 3**0.5, abs=1e-5)
    # p0: the same answer, a tie; p2: the start's answer has no reward.
    better = expected[1] > theirs(reward_model, TEXTS[1], ANSWERS["sft"][1])
    assert found["win_rate"] == (75.0 if better else 25.0)
    assert found["judge"] == str(reward_model)


def test_a_win_is_100_a_tie_50() -> None:
    assert wins({"a": 1.0, "b": 2.0, "c": 0.0, "d": 5.0}, {"a": 1.0, "b": 1.0, "c": 1.0}) == {
        "a": 50,
        "b": 100,
        "c": 0,
    }


def test_answers_to_other_prompts_are_refused(reward_model: Path, data: Path) -> None:
    (data / "dpo.jsonl").write_text('{"id": "p9", "answer": "a"}\n')
    recipe = RewardRecipe(model=str(reward_model), precision="float32", batch_size=2)
    with pytest.raises(
        UserError, match=r"dpo\.jsonl: answers prompts that are not among .*test\.parquet: 'p9'"
    ):
        score_reward_model(data / "dpo.jsonl", data, recipe, data / "r.jsonl")


def test_preflight_knows_a_reward_model_by_its_config(reward_model: Path, tmp_path: Path) -> None:
    study = tiny_study(benchmarks__reward_model={"model": str(reward_model)})
    [(key, model)] = reward_models(study).items()
    assert key == "benchmarks.reward_model.model"
    check_reward_source(model, key)
    policy = make_model(tmp_path / "policy")
    with pytest.raises(
        UserError, match=rf"{key}: .*is not a reward model: LlamaForCausalLM with 2 outputs; give"
    ):
        check_reward_source(Model(path=str(policy)), key)
    make_reward_model(tmp_path / "two", num_labels=2)
    with pytest.raises(UserError, match="LlamaForSequenceClassification with 2 outputs"):
        check_reward_source(Model(path=str(tmp_path / "two")), key)
    plain = make_reward_model(tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template; put the template"):
        check_reward_source(Model(path=str(plain)), key)
    with pytest.raises(UserError, match=rf"{key}: no such folder: \./plan; correct it"):
        check_reward_source(Model(path="./plan"), key)
