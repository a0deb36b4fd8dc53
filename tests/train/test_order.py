"""Data order: every sequence once per pass, a position is the whole checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.domain.pretraining import PretrainConfig
from consortium.errors import UsageError
from consortium.storage.shards import read_tokens
from consortium.train.order import BLOCK, DataOrder, MixedOrder, Packing, Sequences, Source
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


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 400), st.floats(0.01, 1)), min_size=1, max_size=5),
    st.integers(0, 40_000),
    st.lists(st.integers(1, 300), min_size=1, max_size=5),
)
def test_a_mixture_resumes_exactly_and_reads_each_source_in_its_share_and_its_own_order(made, start, counts):
    sources = [Source(name=f"s{at}", sequences=count, weight=weight) for at, (count, weight) in enumerate(made)]
    position, parts = start, []
    for count in counts:
        parts.append(MixedOrder(5, "fr-1", sources).at(position, count))
        position += count
    numbers = MixedOrder(5, "fr-1", sources).at(start, position - start)
    np.testing.assert_array_equal(np.concatenate(parts), numbers)
    before, after = (MixedOrder(5, "fr-1", sources).read(at) for at in (start, position))
    first = 0
    for source in sources:
        own = numbers[(numbers >= first) & (numbers < first + source.sequences)] - first
        read = [round(one[source.name]["passes"] * source.sequences) for one in (before, after)]
        order = DataOrder(5, f"fr-1/{source.name}", source.sequences)
        np.testing.assert_array_equal(own, order.at(read[0], read[1] - read[0]))  # nothing twice, nothing skipped
        share = source.weight / sum(one.weight for one in sources)
        assert abs(len(own) - share * len(numbers)) <= 2 + len(sources) + len(numbers) / BLOCK
        first += source.sequences
    assert first >= numbers.max() + 1


def test_a_mixtures_order_is_fixed_for_good():
    sources = [Source(name="de", sequences=50, weight=1), Source(name="fr", sequences=20, weight=3)]
    assert MixedOrder(7, "fr-1", sources).at(9_998, 6).tolist() == FIXED_MIXTURE


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        (["de:1"], "says nothing of laws-fr-1-tokens, whose language is fr"),
        (["fr:0", "de:1"], "leaves out every dataset"),
        (["fr"], "must be NAME:WEIGHT"),
        (["fr:1", "fr:2"], "names a dataset or language twice"),
        (["fr:nan"], "must be NAME:WEIGHT"),
        (["fr:0"], "one weight at least"),
    ],
)
def test_a_mixture_that_says_too_little_is_refused(mixture, message, s3):
    store = s3.store("private-mixture")
    store.ensure_bucket()
    datasets, data = [put_tokens(store, "fr-1")], {"batch_size": 4, "mixture": mixture}
    with pytest.raises(UsageError, match=message):
        spans_read(datasets, PretrainConfig.of(PARAMS | {"data": data}), "fr-1", 0, 1)


def test_a_share_too_small_to_be_read_is_said():
    sources = [Source(name="de", sequences=5, weight=1), Source(name="fr", sequences=5, weight=1e-6)]
    with pytest.raises(UsageError, match="share of fr is below"):
        MixedOrder(0, "fr-1", sources)


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


@pytest.mark.parametrize("mixture", [[], ["laws-fr-2-tokens:3", "fr:1"]])
def test_what_was_read_leads_back_to_the_shards_tokens(s3, tmp_path, mixture):
    """From the datasets' descriptions alone, for two datasets, over the end of a pass."""
    store = s3.store("private-read-back")
    store.ensure_bucket()
    datasets = [put_tokens(store, "fr-2"), put_tokens(store, "fr-1")]
    params = PretrainConfig.of(PARAMS | {"data": {"batch_size": 4, "mixture": mixture}})
    text = open_sequences(store, datasets, params.model.context, VOCAB, params.data.weights)
    order = text.order(params.seed, "fr-1", shuffle=True)
    position, count = len(text) - 20, 40
    spans = spans_read(datasets, params, "fr-1", position, count)
    held = {shard.digest: (dataset.id, shard.key) for dataset in datasets for shard in dataset.shards}
    for span, row in zip(spans, text.read(order.at(position, count)).tolist(), strict=True):
        dataset, key = held[span.shard]
        assert span.dataset == dataset
        assert read_tokens(store.get(key)).tokens[span.start : span.start + span.tokens].tolist() == row
    read = [sum(span.dataset == dataset.id for span in spans) for dataset in datasets]
    assert read == [30, 10] if mixture else min(read) > 0
    with pytest.raises(UsageError, match="sequences 0 to"):
        Packing([40], 16).place(2)


def test_no_whole_sequence_is_said():
    with pytest.raises(UsageError, match="not one whole sequence"):
        DataOrder(0, "fr-1", 0)


FIXED_MIXTURE = [56, 65, 63, 22, 53, 69]
FIXED = [829, 534, 658, 9, 731, 536]
