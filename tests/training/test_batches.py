"""The order of the data, padding, and how a selection is dealt to the processes."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sams.runtime.errors import UserError
from sams.scheduling.rounds import count_rounds
from sams.study.settings import Training
from sams.training.batches import deal, rounds


@given(
    st.lists(st.integers(1, 2000), min_size=1, max_size=80),
    st.integers(1, 8),
    st.integers(1, 9),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_dealing_gives_everything_once_in_equally_many_micro_batches(
    lengths: list[int], world: int, micro_batch: int, packed: bool
) -> None:
    shares = deal(lengths, world, micro_batch, packed=packed)
    assert sorted(item for share in shares for part in share for item in part) == list(range(len(lengths)))
    assert len({len(share) for share in shares}) == 1
    assert max(len(part) for share in shares for part in share) <= micro_batch
    counts = [sum(len(part) for part in share) for share in shares]
    assert max(counts) <= -(-len(lengths) // world)


def test_dealing_balances_tokens() -> None:
    lengths = [1000, 10, 10, 10, 10, 10, 900, 10]
    loads = [sum(lengths[item] for part in share for item in part) for share in deal(lengths, 2, 4)]
    assert max(loads) / min(loads) < 1.15


def test_padded_micro_batches_hold_similar_lengths_and_packed_ones_equally_many_tokens() -> None:
    lengths = [90, 10, 80, 20, 70, 30, 60, 40]
    [padded], [packed] = deal(lengths, 1, 2), deal(lengths, 1, 2, packed=True)
    assert [[lengths[item] for item in part] for part in padded] == [[90, 80], [70, 60], [40, 30], [20, 10]]
    assert [sum(lengths[item] for item in part) for part in packed] == [100] * 4


def test_rounds_cover_each_epoch_in_an_order_of_its_own_and_drop_the_rest() -> None:
    batches = [batch for _, batch in rounds(items=10, batch=4, epochs=2, seed=0)]
    assert [number for number, _ in rounds(10, 4, 2, 0)] == [1, 2, 3, 4]
    for epoch in (batches[:2], batches[2:]):
        assert len({item for batch in epoch for item in batch}) == 8
    assert batches[:2] != batches[2:]
    assert batches == [batch for _, batch in rounds(10, 4, 2, 0)]
    assert batches != [batch for _, batch in rounds(10, 4, 2, 1)]


def test_count_of_rounds() -> None:
    training = Training(batch_size=4, epochs=3)
    assert count_rounds(10, training, "x") == 6
    assert count_rounds(10, training.model_copy(update={"max_steps": 5}), "x") == 5
    assert count_rounds(10, training, "x", batch=2) == 15
    with pytest.raises(UserError, match=r"3 rows do not fill one global batch of 4.*smaller batch_size"):
        count_rounds(3, training, "sft.batch_size")
