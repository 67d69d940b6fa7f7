"""Selectors of other packages: how they are found, their settings, and what they may answer."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sams.runtime.errors import UserError
from sams.scheduling.selectors.base import Choice, Selector, Setup, View, checked
from sams.scheduling.selectors.sams import Sams
from sams.scheduling.selectors.table import find, settings_of

OWN = """
from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sams.scheduling.selectors.base import Selector, top_k

if TYPE_CHECKING:
    from torch import Tensor

    from sams.scheduling.selectors.base import Setup, View


class ByScore(Selector):
    needs_scores = False
    needs_reference = True

    def __init__(
        self,
        setup: Setup,
        column: str,
        power: Annotated[float, Field(gt=0)] = 2.0,
        order: Literal["up", "down"] = "up",
    ) -> None:
        super().__init__(setup)
        self.columns = [column]
        self.column, self.power = column, power if order == "up" else -power

    def choose(self, view: View, k: int) -> Tensor:
        return top_k(view.columns[self.column] * self.power, k)


class Inner:
    class Same(ByScore):
        pass


class NoSelector:
    pass


class NoChoice(Selector):
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package with a selector and an entry point, on the path."""
    (tmp_path / "own_selectors.py").write_text(OWN)
    (tmp_path / "broken_selectors.py").write_text("import no_such_package\n")
    (tmp_path / "torn_selectors.py").write_text("class Torn(\n")
    (tmp_path / "failing_selectors.py").write_text("x = 1 / 0\n")
    info = tmp_path / "own-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sams.selectors]\nby_score = own_selectors:ByScore\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("own_selectors", None)


@pytest.mark.parametrize("name", ["own_selectors:ByScore", "own_selectors:Inner.Same", "by_score"])
def test_a_selector_is_found_by_its_path_or_entry_point(own: Path, name: str) -> None:
    entry = find(name)
    assert not entry.needs_scores and entry.needs_reference and entry.module == "own_selectors"
    settings = settings_of(name, {"column": "rating", "order": "down"})
    assert settings == {"column": "rating", "power": 2.0, "order": "down"}
    selector = entry.load().build(Setup(), **settings)
    assert selector.columns == ["rating"]
    view = View(numbers=torch.arange(3), columns={"rating": torch.tensor([3.0, 1.0, 2.0])})
    assert checked(selector.choose(view, 2), 3, 2).indices.tolist() == [1, 2]


def test_a_class_in_the_current_folder_is_found(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(own))])
    monkeypatch.chdir(own)
    assert find("own_selectors:ByScore").needs_reference


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("randm", "no selector is named 'randm' .*did you mean random"),
        ("by_scores", "no selector is named 'by_scores' .*did you mean by_score"),
        ("own_selectors:Missing", "selector own_selectors:Missing: AttributeError"),
        ("no_such_module:Missing", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("broken_selectors:Missing", "No module named 'no_such_package'"),
        ("torn_selectors:Torn", r"SyntaxError: .*\(torn_selectors.py, line 1\)"),
        ("failing_selectors:Any", "ZeroDivisionError: division by zero"),
        ("own_selectors:NoSelector", "is not a selector"),
        ("own_selectors:NoChoice", "has no method `choose`"),
        ("own_selectors:OWN", "AttributeError"),
        (":ByScore", "selector :ByScore"),
    ],
)
def test_what_is_no_selector_is_refused(own: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        find(name)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("by_score", {}, "selector by_score: setting 'column' is required"),
        ("by_score", {"column": "a", "powr": 1}, "no setting 'powr'; did you mean power.*has column, power"),
        ("by_score", {"column": "a", "power": -1}, "setting 'power': .*greater than 0, found -1"),
        ("by_score", {"column": "a", "power": "x"}, "setting 'power': .*number.*found 'x'"),
        ("by_score", {"column": "a", "order": "left"}, "setting 'order': .*'up' or 'down'"),
        ("random", {"seed": 1}, "no setting 'seed'; the selector has no settings"),
        ("sams", {"gamma": 1}, "no setting 'gamma'; the selector has no settings"),
        ("reward", {"delta": 1}, "no setting 'delta'; the selector has no settings"),
    ],
)
def test_settings_are_checked_by_the_parameters_of_the_class(
    own: Path, name: str, given: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        settings_of(name, given)
    assert "\n" not in str(refused.value)


def test_the_scheduler_is_set_by_its_own_group() -> None:
    assert settings_of("sams", {}) == {} and issubclass(find("sams").load(), Sams)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (torch.tensor([1, 0]), "ascending"),
        (torch.tensor([1, 1]), "ascending"),
        (torch.tensor([-1, 2]), "ascending"),
        (torch.tensor([2, 4]), "ascending indices of 4 pairs"),
        (torch.tensor([0, 1, 2, 3]), "4 pairs, of 4 pairs and k = 3: give 1 to k"),
        (torch.tensor([], dtype=torch.int64), "0 pairs"),
        (torch.tensor([0.0, 1.0]), "float32"),
        (torch.tensor([[0, 1]]), "int64"),
        (torch.tensor([True, False, True, False]), "bool"),
        (Choice(torch.tensor([0, 1]), weights=torch.tensor([1.0, 0.0])), "weights are not 2 numbers above 0"),
        (Choice(torch.tensor([0, 1]), weights=torch.tensor([1.0, torch.inf])), "weights"),
        (Choice(torch.tensor([0, 1]), weights=torch.ones(4)), "weights are not 2"),
        (Choice(torch.tensor([0]), labels=torch.tensor([1.5])), "labels are not 1 numbers from 0 to 1"),
        (Choice(torch.tensor([0]), labels=torch.tensor([torch.nan])), "labels"),
        (Choice(torch.tensor([0]), beta_scales=torch.tensor([0.0])), "beta_scales"),
    ],
)
def test_an_answer_that_is_no_choice_is_refused(answer: torch.Tensor | Choice, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        checked(answer, 4, 3)


def test_a_choice_passes_between_processes_as_it_is() -> None:
    for choice in (
        Choice(torch.tensor([0, 2])),
        Choice(torch.tensor([1]), weights=torch.tensor([0.5])),
        Choice(torch.tensor([1, 3]), labels=torch.tensor([0.0, 1.0]), beta_scales=torch.tensor([2.0, 0.25])),
    ):
        found = Choice.from_rows(choice.rows(4))
        assert choice.rows(4).shape == (4, 4) and found.is_plain == choice.is_plain
        for name, value in vars(choice).items():
            other = getattr(found, name)
            assert (value is None and other is None) or torch.equal(value, other), name


def test_a_weight_of_zero_leaves_a_pair_out() -> None:
    choice = Choice.weighted(torch.tensor([0.5, 0.0, 2.0]), labels=torch.tensor([1.0, 0.0, 0.9]))
    assert choice.indices.tolist() == [0, 2] and choice.weights is not None and choice.labels is not None
    assert choice.weights.tolist() == [0.5, 2.0] and choice.labels.tolist() == [1.0, pytest.approx(0.9)]
    part = choice.take([1])
    assert part.indices.tolist() == [2] and part.weights is not None and part.weights.tolist() == [2.0]


def test_a_selector_without_choose_says_so() -> None:
    with pytest.raises(NotImplementedError):
        Selector(Setup()).choose(View(numbers=torch.arange(2)), 1)
