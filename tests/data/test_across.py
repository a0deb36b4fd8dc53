from __future__ import annotations

import random
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.data import across
from consortium.data.across import NO_DATE, Decision, KeepConfig, Offer, decide, detail, met, offer, read_offer
from consortium.data.minhash import sign, view
from consortium.domain.cleaning import NearConfig
from consortium.errors import ConfigError, VerificationError
from tests.data.drawn import altered, text

KEY = b"0123456789abcdef0123456789abcdef"
NEAR = NearConfig()
KEEP = KeepConfig(states=("fr", "de", "uy"))
Collection = list[tuple[str, str]]


def exchange(collections: Mapping[str, Collection], keep: KeepConfig = KEEP) -> tuple[Decision, dict[str, list[str]]]:
    """Return what all states decide, and the texts each is left with."""
    signed, sent, rows = {}, {}, {}
    for state, collection in collections.items():
        signed[state] = view(sign([one for one, _ in collection], NEAR, KEY), NEAR, KEY)
        sent[state], rows[state] = offer(signed[state], [date for _, date in collection], NEAR, keep, KEY)
    offers = {state: read_offer(data, NEAR, keep, KEY, sender=state) for state, data in sent.items()}
    places = met(offers, keep.states)
    details = {state: detail(signed[state], rows[state], places[state]) for state in collections}
    decision = decide(offers, details, NEAR, keep)
    left = {}
    for state, collection in collections.items():
        gone = set(rows[state][decision.gives_up[state]].tolist())
        left[state] = [one for row, (one, _) in enumerate(collection) if row not in gone]
    return decision, left


SHARED, OWN = text(1), [text(at) for at in range(10, 13)]
COLLECTIONS: dict[str, Collection] = {
    "fr": [(OWN[0], ""), (altered(SHARED, 2, 1), "2020-05-01")],
    "de": [(SHARED, "2019-01-01"), (OWN[1], "")],
    "uy": [(OWN[2], ""), (altered(SHARED, 1, 2), "")],
}


def test_the_first_state_in_order_keeps_the_copy_and_nobody_loses_its_own() -> None:
    _, left = exchange(COLLECTIONS)
    assert left == {"fr": [OWN[0], altered(SHARED, 2, 1)], "de": [OWN[1]], "uy": [OWN[2]]}


def test_or_the_one_that_published_first() -> None:
    _, left = exchange(COLLECTIONS, replace(KEEP, keeper="published"))
    assert left == {"fr": [OWN[0]], "de": [SHARED, OWN[1]], "uy": [OWN[2]]}


def test_a_second_exchange_drops_nothing_and_the_order_of_messages_does_not_matter() -> None:
    decision, left = exchange(COLLECTIONS)
    again, _ = exchange({state: [(one, "") for one in texts] for state, texts in left.items()})
    assert not any(len(places) for places in again.gives_up.values())
    backwards, _ = exchange(dict(reversed(COLLECTIONS.items())))
    assert backwards.digest() == decision.digest() != again.digest()


def test_short_documents_are_not_offered() -> None:
    form = text(3, 20)
    _, left = exchange({"fr": [(form, "")], "de": [(form, "")], "uy": []})
    assert left["de"] == [form]
    _, left = exchange({"fr": [(form, "")], "de": [(form, "")], "uy": []}, replace(KEEP, min_words=20))
    assert left["de"] == []


def test_an_offer_is_the_sealed_bands_and_nothing_else() -> None:
    texts = [text(at) for at in range(30)]
    signed = view(sign(texts, NEAR, KEY), NEAR, KEY)
    data, rows = offer(signed, [""] * 30, NEAR, KEEP, KEY)
    assert len(data) == 24 + 30 * 14 * 8
    found = read_offer(data, NEAR, KEEP, KEY, sender="fr")
    assert not np.any(np.isin(found.bands, signed.bands))
    assert sorted(rows.tolist()) == list(range(30)) != rows.tolist()
    assert np.all(np.diff(found.bands[0].astype(object)) >= 0)
    other = b"another key, as long"
    same, _ = offer(view(sign(texts, NEAR, other), NEAR, other), [""] * 30, NEAR, KEEP, other)
    assert not np.any(np.isin(read_offer(same, NEAR, KEEP, other, sender="fr").bands, found.bands))


def test_only_of_documents_that_met_the_minima_are_sent() -> None:
    signed = {state: view(sign([one for one, _ in c], NEAR, KEY), NEAR, KEY) for state, c in COLLECTIONS.items()}
    sent = {state: offer(signed[state], ["", ""], NEAR, KEEP, KEY)[0] for state in COLLECTIONS}
    offers = {state: read_offer(data, NEAR, KEEP, KEY, sender=state) for state, data in sent.items()}
    assert {state: len(places) for state, places in met(offers, KEEP.states).items()} == {"fr": 1, "de": 1, "uy": 1}


def test_offers_under_other_settings_are_refused_by_name() -> None:
    signed = view(sign([SHARED], NEAR, KEY), NEAR, KEY)
    data, _ = offer(signed, [""], NEAR, KEEP, KEY)
    for near, keep, key in (
        (replace(NEAR, threshold=0.7), KEEP, KEY),
        (NEAR, replace(KEEP, states=("de", "fr", "uy")), KEY),
        (NEAR, replace(KEEP, keeper="published"), KEY),
        (NEAR, KEEP, KEY[::-1]),
    ):
        with pytest.raises(VerificationError, match="uy made its offer"):
            read_offer(data, near, keep, key, sender="uy")
    with pytest.raises(VerificationError, match="cut off"):
        read_offer(data[:-1], NEAR, KEEP, KEY, sender="uy")
    with pytest.raises(VerificationError, match="no offer"):
        read_offer(b"", NEAR, KEEP, KEY, sender="uy")


def test_details_that_do_not_fit_and_states_that_are_missing_are_refused() -> None:
    signed = view(sign([SHARED], NEAR, KEY), NEAR, KEY)
    data, _ = offer(signed, [""], NEAR, KEEP, KEY)
    offers = {state: read_offer(data, NEAR, KEEP, KEY, sender=state) for state in KEEP.states}
    with pytest.raises(VerificationError, match="the detail of de"):
        decide(offers, {"fr": bytes(112), "de": bytes(111), "uy": bytes(112)}, NEAR, KEEP)
    with pytest.raises(VerificationError, match="no more, no fewer"):
        decide({"fr": offers["fr"]}, {"fr": b""}, NEAR, KEEP)


def repeating(equal: int, count: int) -> Offer:
    """`count` documents, of which the first `equal` share every band."""
    bands = np.arange(NEAR.bands * count, dtype=np.uint64).reshape(NEAR.bands, count) + np.uint64(1)
    bands[:, :equal] = 0
    return Offer(bands, np.full(count, NO_DATE, dtype=np.uint32))


def none_of(offers: Mapping[str, Offer]) -> dict[str, bytes]:
    return {state: bytes(len(places) * NEAR.minima) for state, places in met(offers, KEEP.states).items()}


def test_offers_that_repeat_a_band_are_refused_by_the_names_of_both_before_anything_is_compared() -> None:
    offers = {"fr": repeating(10, 20), "de": repeating(100_000, 100_001), "uy": repeating(100_000, 100_000)}
    with pytest.raises(
        VerificationError, match=r"de and uy offered 100,000 and 100,000 .* one band makes 10,002"
    ) as no:
        decide(offers, none_of(offers), NEAR, KEEP)
    assert no.value.where == "de, uy"


def test_many_buckets_that_each_would_pass_are_too_many_together(monkeypatch: pytest.MonkeyPatch) -> None:
    offers = {"fr": repeating(90, 90), "de": repeating(80, 90), "uy": repeating(0, 0)}
    decide(offers, none_of(offers), NEAR, KEEP)
    monkeypatch.setattr(across, "_MOST_PAIRS", 14 * 90 * 80 - 1)
    with pytest.raises(VerificationError, match="fr and de offered"):
        decide(offers, none_of(offers), NEAR, KEEP)


def test_a_large_bucket_is_compared_in_parts_that_fit_into_memory() -> None:
    numbers = np.random.default_rng(1)
    offers = {}
    for state in KEEP.states[:2]:
        bands = numbers.integers(1, 2**63, (NEAR.bands, 1000), dtype=np.uint64)
        bands[0] = 7
        offers[state] = Offer(bands, np.full(1000, NO_DATE, dtype=np.uint32))
    details = {state: numbers.bytes(1000 * NEAR.minima) for state in offers}
    tracemalloc.start()
    decision = decide(offers, details, NEAR, replace(KEEP, states=KEEP.states[:2]))
    most_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most_bytes < 128 << 20, "a million pairs' minima are 224 MB"
    assert not any(len(places) for places in decision.gives_up.values())


def test_nothing_leaves_without_a_secret_key() -> None:
    with pytest.raises(ConfigError, match="secret key"):
        offer(view(sign([SHARED], NEAR), NEAR), [""], NEAR, KEEP, b"")
    with pytest.raises(ConfigError, match="each once"):
        KeepConfig(states=("fr", "fr"))


@given(st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_of_what_several_states_have_one_keeps_all_it_has_and_a_second_exchange_drops_nothing(seed: int) -> None:
    draw = random.Random(seed)
    originals = [text(seed * 100 + at, draw.randint(40, 200)) for at in range(8)]
    collections: dict[str, Collection] = {
        state: [
            (altered(original, draw.randint(0, 3), hash_of(state)), draw.choice(["", "2019-05-01", "2021-01-31"]))
            for original in originals
            if draw.random() < 0.6
        ]
        for state in KEEP.states
    }
    keep = replace(KEEP, keeper=draw.choice(["order", "published"]))
    decision, left = exchange(collections, keep)
    dates = {one: date for collection in collections.values() for one, date in collection}
    again, _ = exchange({state: [(one, dates[one]) for one in texts] for state, texts in left.items()}, keep)
    assert not any(len(places) for places in again.gives_up.values())
    for original in originals:  # at least one copy of everything stays in the federation
        versions = {altered(original, changes, place) for changes in range(4) for place in range(3)}
        if versions & dates.keys():
            assert any(one in versions for texts in left.values() for one in texts)
    assert set(decision.gives_up) == set(KEEP.states)


def hash_of(state: str) -> int:
    return KEEP.states.index(state)
