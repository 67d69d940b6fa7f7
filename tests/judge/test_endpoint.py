"""The judge of a recipe, and its key."""

import os
from typing import Any

import pytest

from sams.judge.ask import DryRun, ask_judge
from sams.judge.client import judge_key, key_withheld
from sams.runtime.errors import UserError
from sams.study.recipes import ScoreRecipe
from sams.study.settings import Judge, World
from tests.judge.endpoint import CallOf, call_of

__all__ = ["call_of"]


def recipe(world: World | None = None, **settings: Any) -> ScoreRecipe:
    return ScoreRecipe(
        judge=Judge.model_validate({"kind": "openai", "model": "judge", **settings}), world=world
    )


def test_a_withheld_key_is_found_by_the_judge_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_API_KEYS", "another,sk-secret")
    before = dict(os.environ)
    with key_withheld():
        assert "sk-secret" not in " ".join(os.environ.values())
        assert judge_key(recipe().judge) == "sk-secret"
    assert dict(os.environ) == before


def test_a_server_of_ones_own_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert judge_key(recipe(base_url="http://gpu-node:8000/v1").judge) == "none"
    assert judge_key(recipe().judge) is None


def test_the_local_judge_needs_a_world(call_of: CallOf) -> None:
    with pytest.raises(UserError, match="can only grade the synthetic world"):
        ask_judge(recipe(kind="local"), [call_of(0)])
    with pytest.raises(DryRun):
        ask_judge(recipe(World(), kind="local"), [call_of(0)], dry_run=True)


def test_the_local_judge_judges(call_of: CallOf) -> None:
    judgments = ask_judge(recipe(World(), kind="local"), [call_of(0)])
    assert judgments.judge == "local judge" and judgments.facts is None
    assert judgments.each[0].value < 0.5  # the right answer is the second one
