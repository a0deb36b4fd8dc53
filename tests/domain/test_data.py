from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Dataset, Description, inherited
from consortium.errors import UsageError
from consortium.keys.canonical import digest_json
from tests.builders import dataset

ARCHIVE = Description(
    legal_basis=("Code du patrimoine L211-1",),
    collected_from="2001-01-01",
    collected_until="2020-12-31",
    contributors=("Archives nationales",),
    consent_until="2030-06-30",
)
PRESS = Description(
    legal_basis=("contract 17/2022",),
    collected_from="1999-05-01",
    collected_until="2019-01-01",
    contributors=("AFP",),
    consent_until="2028-01-31",
)


def test_a_dataset_that_says_nothing_new_keeps_the_bytes_that_were_signed_before():
    assert "about" not in to_json(dataset())
    assert digest_json(dataset()) == "sha256:3c8c6963e1267d266ddf53b8374baf07c3f9555824b7ca6f2a923272c0a6b257"


def test_a_description_travels_with_its_dataset_and_says_only_what_is_known():
    described = dataset(about=Description(consent_until="2030-06-30"))
    assert to_json(described)["about"] == {"consent_until": "2030-06-30"}
    assert from_json(Dataset, to_json(described)) == described
    assert digest_json(described) != digest_json(dataset())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"consent_until": "30.6.2030"}, "consent_until must be a day such as"),
        ({"consent_until": "20300630"}, "consent_until must be a day such as"),
        ({"consent_until": "2030-02-30"}, "consent_until must be a day such as"),
        ({"consent_until": "9999-12-31"}, "consent_until must be a day such as"),
        ({"collected_from": "2021-01-01"}, "lies after"),
        ({"contributors": ["  "]}, "contributors"),
        ({"legal_basis": ["a\x1b[2J"]}, "legal_basis"),
    ],
)
def test_a_description_that_cannot_be_is_refused(change, said):
    with pytest.raises(UsageError, match=said):
        from_json(Dataset, to_json(dataset()) | {"about": to_json(ARCHIVE) | change})


def test_consent_holds_to_the_end_of_its_last_day_in_utc():
    described = dataset(about=ARCHIVE)
    after_ms = 1_909_094_400_000  # 2030-07-01T00:00Z
    assert described.consent_over(after_ms - 1) == ""
    assert described.consent_over(after_ms) == "the consent to use laws-fr@1 ended on 2030-06-30"
    assert dataset().consent_over(2**60) == ""


def test_what_is_made_of_several_ends_with_the_first_consent_and_names_all_the_rest():
    assert inherited([ARCHIVE, PRESS]) == Description(
        legal_basis=("Code du patrimoine L211-1", "contract 17/2022"),
        collected_from="1999-05-01",
        collected_until="2020-12-31",
        contributors=("AFP", "Archives nationales"),
        consent_until="2028-01-31",
    )
    assert inherited([ARCHIVE, Description()]) == replace(ARCHIVE, collected_from="", collected_until="")
    assert inherited([]) == Description()


DAYS = st.dates().map(lambda day: f"{min(max(day.year, 1000), 9998):04}-{day.month:02}-{min(day.day, 28):02}")


@given(st.lists(st.builds(Description, consent_until=DAYS | st.just("")), max_size=5))
def test_nothing_made_of_data_outlives_the_consent_to_any_of_it(parents):
    made = inherited(parents)
    assert all(made.consent_until <= parent.consent_until or not parent.consent_until for parent in parents)
    assert bool(made.consent_until) == any(parent.consent_until for parent in parents)
    assert inherited([made]) == made
