"""Start of the judge of a recipe."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sams.judge.endpoint import key_withheld, open_judge
from sams.judge.proxy import DryRun
from sams.runtime.errors import UserError
from sams.study.recipes import ScoreRecipe
from sams.study.settings import Judge, World
from sams.world.local_judge import LocalJudge, local_judge


def recipe(world: World | None = None, **settings: Any) -> ScoreRecipe:
    return ScoreRecipe(judge=Judge.model_validate({"kind": "openai", **settings}), world=world)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="OPENAI_API_KEY is not set"), open_judge(recipe(), tmp_path / "none"):
        pass


def test_answers_that_are_kept_need_no_key(tmp_path: Path) -> None:
    (tmp_path / "calls.jsonl").touch()
    with open_judge(recipe(), tmp_path / "calls.jsonl") as endpoint:
        assert endpoint.proxy is not None
        endpoint.proxy.admit()


def test_a_withheld_key_is_found_by_the_judge_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_API_KEYS", "another,sk-secret")
    before = dict(os.environ)
    with key_withheld(), open_judge(recipe()) as endpoint:
        assert "sk-secret" not in " ".join(os.environ.values())
        assert endpoint.token != "sk-secret"
    assert dict(os.environ) == before


def test_the_local_judge_needs_a_world() -> None:
    with (
        pytest.raises(UserError, match="can only grade the synthetic world"),
        open_judge(recipe(kind="local")),
    ):
        pass


def test_the_local_judge_is_called_without_a_proxy_and_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DryRun), open_judge(recipe(World(), kind="local"), dry_run=True):
        pass
    started = []

    @contextmanager
    def seen(length_lean: float) -> Iterator[LocalJudge]:
        with local_judge(length_lean) as running:
            started.append(running.process)
            yield running

    monkeypatch.setattr("sams.judge.endpoint.local_judge", seen)
    with open_judge(recipe(World(), kind="local")) as endpoint:
        assert endpoint.proxy is None
        endpoint.check()
        started[0].kill()
        started[0].wait()
        with pytest.raises(RuntimeError, match="the local judge has ended unexpectedly"):
            endpoint.check()
