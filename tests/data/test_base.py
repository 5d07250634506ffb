"""The order of training is a function of position: epochs are permutations, ranks are disjoint, resuming is exact."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wavespace.data.base import NO_NOTES, BatchSampler, DataModule, Item, Notes, collate, rng_for, shuffled
from wavespace.spec import AudioSpec

SEEDS = st.integers(-(2**31), 2**63 - 1)


@given(seed=SEEDS, epoch=st.integers(0, 1000), n=st.integers(1, 200))
def test_every_epoch_is_a_permutation(seed: int, epoch: int, n: int) -> None:
    order = [shuffled(seed, epoch * n + place, n) for place in range(n)]
    assert sorted(order) == list(range(n))


@given(seed=SEEDS, epoch=st.integers(0, 1000), n=st.integers(20, 200))
def test_epochs_and_seeds_have_orders_of_their_own(seed: int, epoch: int, n: int) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return [shuffled(seed, epoch * n + place, n) for place in range(n)]

    assert order(seed, epoch) != order(seed, epoch + 1)
    assert order(seed, epoch) != order(seed + 1, epoch)


@given(key=st.lists(st.integers(0, 2**31) | st.sampled_from(["train", "window", "order"]), min_size=1, max_size=4))
def test_a_generator_depends_on_its_key_alone(key: list[int | str]) -> None:
    first = rng_for(*key).random(4)
    np.testing.assert_array_equal(rng_for(*key).random(4), first)
    assert not np.array_equal(rng_for(*key, 7).random(4), first)
    assert not np.array_equal(rng_for("other", *key).random(4), first)


SIZES = {"batch_size": st.integers(1, 9), "start": st.integers(0, 50), "world": st.integers(1, 5)}


@given(**SIZES)
def test_ranks_are_disjoint_and_together_the_order_of_one(batch_size: int, start: int, world: int) -> None:
    ranks = [list(itertools.islice(BatchSampler(batch_size, start, rank, world), 6)) for rank in range(world)]
    assert all(len(batch) == batch_size for rank in ranks for batch in rank)
    together = [position for step in zip(*ranks) for batch in step for position in batch]
    alone = itertools.chain.from_iterable(BatchSampler(batch_size * world, start))
    assert together == list(itertools.islice(alone, len(together)))


@given(**SIZES, rank=st.integers(0, 4), more=st.integers(0, 20))
def test_a_sampler_that_starts_later_goes_on_exactly(
    batch_size: int, start: int, world: int, rank: int, more: int
) -> None:
    rank %= world
    whole = BatchSampler(batch_size, start, rank, world)
    later = BatchSampler(batch_size, start + more, rank, world)
    assert list(itertools.islice(whole, more, more + 5)) == list(itertools.islice(later, 5))


def notes_strategy() -> st.SearchStrategy[Notes]:
    row = st.tuples(st.floats(-1, 9), st.floats(0, 9), st.integers(21, 108), st.integers(1, 127))
    return st.lists(row, max_size=4).map(lambda rows: np.array(rows, dtype=np.float64).reshape(-1, 4))


@settings(max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    notes=st.lists(notes_strategy(), min_size=5, max_size=5),
    dtype=st.sampled_from([np.float32, np.int16]),
)
def test_a_batch_holds_every_item_and_zeros_after_it(lengths: list[int], notes: list[Notes], dtype: type) -> None:
    items = [
        Item(np.arange(1, n + 1, dtype=dtype), f"item {i}", notes[i], {"instrument": i}) for i, n in enumerate(lengths)
    ]
    batch = collate(items)
    assert batch.audio.shape == (len(lengths), 1, max(lengths))
    assert batch.audio.numpy().dtype == dtype
    assert batch.lengths.dtype == torch.int64
    assert batch.lengths.tolist() == lengths
    assert batch.names == [item.name for item in items]
    assert batch.labels["instrument"].tolist() == list(range(len(lengths)))
    assert batch.notes.dtype == torch.float32
    assert batch.notes.shape == (sum(len(item.notes) for item in items), 5)
    for i, item in enumerate(items):
        np.testing.assert_array_equal(batch.audio[i, 0, : lengths[i]], item.audio)
        assert not batch.audio[i, 0, lengths[i] :].any()
        np.testing.assert_array_equal(batch.notes[batch.notes[:, 0] == i, 1:], item.notes.astype(np.float32))


def test_a_batch_without_notes_or_labels_has_empty_ones() -> None:
    batch = collate([Item(np.zeros(3, np.float32), "a"), Item(np.zeros(2, np.float32), "b")])
    assert batch.notes.shape == (0, 5)
    assert batch.labels == {}
    assert NO_NOTES.shape == (0, 4)


class Counting:
    """A stream whose item number p holds p."""

    def __getitem__(self, position: int) -> Item:
        return Item(np.full(4, position, np.int16), str(position))

    def __len__(self) -> int:
        return 5


class CountingData(DataModule):
    def __init__(self, batch_size: int = 2, workers: int = 0, eval_batch_size: int | None = None) -> None:
        super().__init__(AudioSpec(4, 1.0), batch_size, workers, eval_batch_size)
        self.train_set, self.val_set, self.test_set = Counting(), Counting(), Counting()  # type: ignore[assignment]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_training_loader_is_endless_and_in_the_order_of_positions(workers: int) -> None:
    batches = itertools.islice(CountingData(workers=workers).train_dataloader(), 20)
    assert [int(value) for batch in batches for value in batch.audio[:, 0, 0]] == list(range(40))


def test_evaluation_loaders_give_every_item_once_in_order() -> None:
    for data, sizes in ((CountingData(), [2, 2, 1]), (CountingData(eval_batch_size=4), [4, 1])):
        for loader in (data.val_dataloader(), data.test_dataloader()):
            batches = list(loader)
            assert [len(batch.audio) for batch in batches] == sizes
            assert [name for batch in batches for name in batch.names] == list("01234")


def test_sizes_that_can_not_be_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size = 0: input should be greater than 0"):
        CountingData(batch_size=0)
    with pytest.raises(ValueError, match="workers = -1: input should be greater than or equal to 0"):
        CountingData(workers=-1)
