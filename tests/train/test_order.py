"""Data order: every sequence once per pass, a position is the whole checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.domain.pretraining import PretrainConfig
from consortium.errors import UsageError
from consortium.storage.shards import read_tokens
from consortium.train.order import DataOrder, Packing, Sequences
from consortium.train.tokens import open_sequences, spans_read
from tests.train.conftest import PARAMS, VOCAB, put_tokens


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(0, 2**63 - 1), st.integers(0, 3))
def test_a_pass_reads_every_sequence_exactly_once(sequences, seed, number):
    order = DataOrder(seed, "fr-1", sequences)
    read = order.at(number * sequences, sequences)
    assert sorted(int(n) for n in read) == list(range(sequences))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2000), st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_resuming_at_a_position_repeats_nothing_and_skips_nothing(sequences, start, counts):
    order, walking, position, parts = DataOrder(5, "fr-1", sequences), DataOrder(5, "fr-1", sequences), start, []
    for count in counts:
        parts.append(DataOrder(5, "fr-1", sequences).at(position, count))
        np.testing.assert_array_equal(walking.at(position, count), parts[-1])
        position += count
    np.testing.assert_array_equal(np.concatenate(parts), order.at(start, sum(counts)))


def test_seeds_sites_and_passes_are_ordered_differently():
    first = DataOrder(1, "fr-1", 1000).at(0, 1000)
    for other in (DataOrder(2, "fr-1", 1000).at(0, 1000), DataOrder(1, "de-1", 1000).at(0, 1000),
                  DataOrder(1, "fr-1", 1000).at(1000, 1000)):  # fmt: skip
        assert (first != other).mean() > 0.9


def test_the_order_is_fixed_for_good():
    """A stored position means the same under every later version; these numbers must never change."""
    assert DataOrder(7, "fr-1", 1000).at(0, 6).tolist() == FIXED
    assert DataOrder(7, "fr-1", 5, shuffle=False).at(3, 4).tolist() == [3, 4, 0, 1]


def test_shuffling_spreads_neighbours():
    read = DataOrder(0, "uy-1", 10_000).at(0, 10_000).astype(np.int64)
    assert np.abs(np.diff(read)).mean() == pytest.approx(10_000 / 3, rel=0.05)


def test_sequences_overlap_by_one_token_and_do_not_cross_shards():
    text = Sequences([np.arange(10, dtype=np.uint16), np.arange(100, 109, dtype=np.uint16), np.arange(3)], 4)
    assert len(text) == 4
    assert text.read(np.arange(4, dtype=np.uint64)).tolist() == [
        [0, 1, 2, 3, 4], [4, 5, 6, 7, 8], [100, 101, 102, 103, 104], [104, 105, 106, 107, 108]
    ]  # fmt: skip


def test_what_was_read_leads_back_to_the_shards_tokens(s3, tmp_path):
    """From the datasets' descriptions alone, for two datasets, over the end of a pass."""
    store = s3.store("private-read-back")
    store.ensure_bucket()
    datasets = [put_tokens(store, "fr-2"), put_tokens(store, "fr-1")]
    params = PretrainConfig.of(PARAMS)
    text = open_sequences(store, datasets, params.model.context, VOCAB, tmp_path)
    order = DataOrder(params.seed, "fr-1", len(text))
    position, count = len(text) - 20, 40
    spans = spans_read(datasets, params, "fr-1", position, count)
    held = {shard.digest: (dataset.id, shard.key) for dataset in datasets for shard in dataset.shards}
    for span, row in zip(spans, text.read(order.at(position, count)).tolist(), strict=True):
        dataset, key = held[span.shard]
        assert span.dataset == dataset
        assert read_tokens(store.get(key)).tokens[span.start : span.start + span.tokens].tolist() == row
    assert {span.dataset for span in spans} == {dataset.id for dataset in datasets}
    with pytest.raises(UsageError, match="sequences 0 to"):
        Packing([40], 16).place(2)


def test_no_whole_sequence_is_said():
    with pytest.raises(UsageError, match="not one whole sequence"):
        DataOrder(0, "fr-1", 0)


FIXED = [829, 534, 658, 9, 731, 536]
