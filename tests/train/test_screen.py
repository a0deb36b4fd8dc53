from __future__ import annotations

import numpy as np
import pytest

from consortium.domain.training import Commit
from consortium.train.outer import digest_of, norm_of, to_bytes
from consortium.train.screen import screen

SIZE = 50


def made(site: str, scale: float = 1.0, value: float | None = None, **changes) -> tuple[Commit, bytes]:
    vector = (np.random.default_rng(sum(site.encode())).standard_normal(SIZE) * scale).astype(np.float32)
    if value is not None:
        vector[3] = value
    data = to_bytes(vector)
    fields = {"digest": digest_of(data), "norm": norm_of(vector).hex(), "loss": "0x0p+0"} | changes
    return Commit(job="j", round=1, site=site, tokens=1, steps=1, **fields), data


def reasons(*contributions: tuple[Commit, bytes], faults: dict[str, str] | None = None) -> dict[str, str]:
    received = {commit.site: data for commit, data in contributions if commit.site not in (faults or {})}
    judged = screen([commit for commit, _ in contributions], received, faults or {}, SIZE)
    assert [one.commit.site for one in judged] == sorted(one.commit.site for one in judged)
    return {one.commit.site: one.reason for one in judged}


def test_honest_contributions_of_unlike_size_are_accepted():
    assert reasons(made("uy-1", 5.0), made("de-1"), made("fr-1", 0.5)) == {"de-1": "", "fr-1": "", "uy-1": ""}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (made("uy-1", 100.0), "outlier"),
        (made("uy-1", value=np.nan), "finite"),
        (made("uy-1", value=np.inf), "finite"),
        (made("uy-1", norm=(1.0).hex()), "norm"),
        (made("uy-1", norm="not a number"), "norm"),
        (made("uy-1", digest="sha256:00"), "digest"),
        ((made("uy-1", digest=digest_of(b"\0" * 8))[0], b"\0" * 8), "shape"),
    ],
)
def test_a_bad_contribution_is_refused_and_named_the_others_are_not(bad, reason):
    assert reasons(made("de-1"), made("fr-1"), bad) == {"de-1": "", "fr-1": "", "uy-1": reason}


def test_what_could_not_be_had_carries_its_fault():
    judged = reasons(made("de-1"), made("fr-1"), faults={"fr-1": "unreachable"})
    assert judged == {"de-1": "", "fr-1": "unreachable"}


def test_between_two_nobody_is_the_outlier():
    assert reasons(made("de-1"), made("fr-1", 1000.0)) == {"de-1": "", "fr-1": ""}


def test_a_contribution_of_zeros_is_no_reason_to_refuse_the_others():
    assert set(reasons(made("de-1", 0.0), made("fr-1", 0.0), made("uy-1")).values()) == {""}


def test_a_verdict_names_digest_reason_and_measured_norm():
    contribution = made("de-1")
    (one,) = screen([contribution[0]], {"de-1": contribution[1]}, {}, SIZE)
    assert one.as_verdict() == {
        "site": "de-1", "digest": contribution[0].digest, "accept": True, "reason": "", "norm": contribution[0].norm
    }  # fmt: skip
