"""Which rounds are scheduled, and how many pairs each trains on."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sams.runtime.errors import UserError
from sams.scheduling.rounds import selection_of
from sams.scheduling.selection import Selection, selected
from sams.study.settings import Preference


def sizes(**options: Any) -> list[int]:
    selection = Selection(**{"batch_size": 8, "rounds": 8, "ratios": (0.5,), **options})
    return [selection.size(round) for round in range(1, selection.rounds + 1)]


def test_one_ratio_holds_for_the_whole_run() -> None:
    assert sizes() == [4] * 8
    assert sizes(ratios=(1.0,)) == [8] * 8


def test_several_ratios_hold_for_equal_parts() -> None:
    assert sizes(ratios=(1.0, 0.5, 0.25, 0.125)) == [8, 8, 4, 4, 2, 2, 1, 1]
    assert sizes(ratios=(1.0, 0.5, 0.25)) == [8, 8, 8, 4, 4, 4, 2, 2]


@given(st.integers(1, 200), st.data())
def test_every_ratio_has_its_part_in_order(rounds: int, data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, min(rounds, 8)))
    found = sizes(rounds=rounds, ratios=tuple(part / 8 for part in range(1, parts + 1)))
    assert found == sorted(found)
    shares = [found.count(part) for part in range(1, parts + 1)]
    assert sum(shares) == rounds and max(shares) - min(shares) <= 1 and min(shares) >= 1


def test_warm_up_and_every_third_round_are_full() -> None:
    assert sizes(warmup_rounds=2) == [8, 8, 4, 4, 4, 4, 4, 4]
    assert sizes(full_every=3) == [4, 4, 8, 4, 4, 8, 4, 4]
    assert sizes(warmup_rounds=2, full_every=3) == [8, 8, 8, 4, 4, 8, 4, 4]
    assert sizes(warmup_rounds=99) == [8] * 8
    assert sizes(full_every=2) == [4, 8] * 4


def test_after_its_end_the_run_is_plain_training() -> None:
    assert sizes(end_after=3) == [4, 4, 4, 8, 8, 8, 8, 8]
    assert sizes(end_after=1) == [4, 8, 8, 8, 8, 8, 8, 8]
    # The parts of the ratios are those of the run, not of its scheduled rounds.
    assert sizes(ratios=(0.5, 0.25), end_after=5) == [4, 4, 4, 4, 2, 8, 8, 8]


def test_the_selector_sees_warm_up_and_full_rounds_and_nothing_after_the_end() -> None:
    selection = Selection(8, 6, (0.5,), warmup_rounds=2, full_every=3, end_after=4)
    assert [selection.scheduled(round) for round in range(1, 7)] == [True] * 4 + [False] * 2
    assert all(Selection(8, 6, (0.5,)).scheduled(round) for round in range(1, 7))


def test_a_share_that_is_whole_but_for_rounding_is_taken() -> None:
    assert 100 * 0.29 < 29
    assert selected(100, 0.29) == 29


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"ratios": (0.3,)}, "2.4 pairs"),
        ({"ratios": (0.5, 0.3)}, "2.4 pairs"),
        ({"ratios": (0.0,)}, "0 pairs"),
        ({"ratios": (1e-9,)}, "8e-09 pairs"),
        ({"ratios": (1.5,)}, "12 pairs"),
        ({"ratios": (-0.5,)}, "-4 pairs"),
        ({"ratios": ()}, "0 ratios"),
        ({"ratios": (0.5,) * 9}, "9 ratios for 8 rounds"),
        ({"warmup_rounds": -1}, "warmup_rounds"),
        ({"full_every": 0}, "full_every"),
        ({"full_every": 1}, "full_every"),
        ({"end_after": 0}, "end_after"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sizes(**wrong)


def method(**settings: Any) -> Preference:
    return Preference.model_validate({"batch_size": 8, "epochs": 3, **settings})


def test_the_selection_of_a_method_has_its_settings() -> None:
    every = {"ratio": [0.5, 0.25], "warmup_rounds": 1, "full_every": 3, "end_after": 5}
    assert selection_of(method(selector="random", **every), 20) == Selection(8, 6, (0.5, 0.25), 1, 3, 5)
    assert selection_of(method(selector="random", max_steps=4), 20) == Selection(8, 4, (1.0,))


def test_pairs_chosen_before_the_training_leave_smaller_batches() -> None:
    # The easiest quarter of each batch's worth of pairs: 2 of 8, in as many rounds.
    assert selection_of(method(selector="random", easiest=0.25, ratio=0.5), 5) == Selection(2, 6, (0.5,))
    # A choice by cross-fitted losses is made once: all that is left is trained on.
    assert selection_of(method(selector="selective", ratio=0.25), 5) == Selection(2, 6, (1.0,))


def test_a_run_that_cannot_hold_its_selection_is_refused_by_key() -> None:
    with pytest.raises(UserError, match=r"^dpo\.batch_size: 7 rows do not fill one global batch of 8"):
        selection_of(method(), 7, "dpo")
    with pytest.raises(UserError, match=r"^preference\.ratio: 4 ratios for 3 rounds"):
        selection_of(method(selector="random", ratio=[0.5] * 4), 8)
