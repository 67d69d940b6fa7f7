"""Padded and packed rows: tokens of the items, indices of completions and of the tokens that predict them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sams.policy.rows import Item, Rows, pack_rows, pad_rows

PAIRS: list[Item] = [([5, 6], [[7], [8, 9]]), ([1], [[2, 3, 4], [5]])]
ids = st.lists(st.integers(1, 99), min_size=1, max_size=6)


def sequences(rows: Rows) -> list[tuple[list[int], list[int]]]:
    """For each sequence the tokens that are learnt, and those that predict them."""
    flat = rows.input_ids.flatten()
    return [
        (flat[rows.answers[own]].tolist(), flat[rows.predicts[own]].tolist())
        for own in (rows.sequence == sequence for sequence in range(len(rows.counts)))
    ]


def test_padded_rows_hold_a_sequence_each_the_first_completions_first() -> None:
    rows = pad_rows(PAIRS)
    assert rows.input_ids.tolist() == [[5, 6, 7, 0], [1, 2, 3, 4], [5, 6, 8, 9], [1, 5, 0, 0]]
    assert rows.attention_mask is not None
    assert rows.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert (rows.tokens, rows.branches, rows.position_ids) == (13, None, None)


def test_a_packed_row_holds_each_prompt_once() -> None:
    rows = pack_rows(PAIRS)
    assert rows.input_ids.tolist() == [[5, 6, 7, 8, 9, 1, 2, 3, 4, 5]]
    assert rows.position_ids is not None
    assert rows.position_ids.tolist() == [[0, 1, 2, 2, 3, 0, 1, 2, 3, 1]]
    assert rows.branches is not None
    assert rows.branches.lengths.tolist() == [[2, 1, 2], [1, 3, 1]]
    assert (rows.tokens, rows.attention_mask) == (10, None)


@given(
    st.integers(1, 3).flatmap(
        lambda n: st.lists(st.tuples(ids, st.lists(ids, min_size=n, max_size=n)), min_size=1, max_size=4)
    )
)
@settings(max_examples=100, deadline=None)
def test_both_layouts_learn_the_same_tokens_from_the_tokens_before_them(items: list[Item]) -> None:
    expected = [
        (list(answer), [*prompt, *answer][len(prompt) - 1 : -1])
        for column in zip(*(answers for _, answers in items), strict=True)
        for (prompt, _), answer in zip(items, column, strict=True)
    ]
    for rows in (pad_rows(items), pack_rows(items)):
        assert sequences(rows) == expected
        assert rows.counts.tolist() == [len(answer) for answer, _ in expected]
        assert rows.sequence.tolist() == sorted(rows.sequence.tolist())


def test_rows_move_to_a_device_whole() -> None:
    rows = pack_rows(PAIRS).to(torch.device("meta"))
    assert {value.device.type for value in vars(rows).values() if isinstance(value, torch.Tensor)} == {"meta"}
    assert rows.branches is not None


def test_items_of_a_batch_have_as_many_completions_each() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        pack_rows([([1], [[2], [3]]), ([1], [[2]])])
