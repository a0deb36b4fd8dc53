"""Rounds in a report: whose word counts, what belongs to the round, and who ruled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consortium.domain.codec import to_json
from consortium.domain.records import Record, RecordType, UsageRow
from consortium.domain.training import Commit, Round, RoundPhase, Ruling, Verdict
from consortium.errors import VerificationError
from consortium.keys.documents import DocumentKind, sign_document
from consortium.keys.signing import SigningKey, sign_value
from consortium.reports.build import build_report
from consortium.train.rounds import certify
from tests.reports import builders as b

JOB = "job-t"
ANNA = SigningKey.generate()


def commits_of(world: Any, tokens: dict[str, int], *, job: str = JOB, number: int = 1) -> list[Commit]:
    return [
        sign_value(
            world.keys[site],
            Commit(
                job=job, round=number, site=site, tokens=count, steps=20, digest=f"sha256:{site}", norm=(1.5).hex(),
                loss=(4.25).hex(),
            ),
        )
        for site, count in tokens.items()
    ]  # fmt: skip


def verdicts_of(world: Any, commits: list[Commit], judges: tuple[str, ...] = ("de-1", "fr-1")) -> list[Verdict]:
    return [
        sign_value(
            world.keys[judge],
            Verdict(job=one.job, round=one.round, judge=judge, site=one.site, digest=one.digest, accept=True),
        )
        for judge in judges
        for one in commits
    ]


def put(world: Any, commits: list[Commit], verdicts: list[Verdict], **changes: Any) -> Record:
    """Record a round with the certificate that the server would make of these parts."""
    certificate = certify(JOB, 1, "sha256:before", commits, verdicts, rulings=changes.get("rulings", ()))
    sites = [commit.site for commit in commits]
    held = Round(
        job=JOB, number=1, phase=RoundPhase.CLOSED, expected=tuple(sites), commits=tuple(commits),
        verdicts=tuple(verdicts), certificate=sign_value(world.keys["server"], certificate),
        outer_digests=dict.fromkeys(sites, "sha256:after"),
    )  # fmt: skip
    record: Record = world.add("server", RecordType.ROUND, to_json(replace(held, **changes)))
    return record


def roster(world: Any, *people: str, version: int = 1, expires_ms: int = 1 << 45) -> Record:
    text = f"partner: fr\npeople: [{', '.join(people)}]\n"
    document = sign_document(
        world.keys["fr-1"], kind=DocumentKind.ROSTER, partner="fr", version=version, issued_ms=1,
        expires_ms=expires_ms, file="configs/partner/fr.yaml", text=text,
    )  # fmt: skip
    record: Record = world.add("server", RecordType.ROSTER, {"partner": "fr", "digest": "", "document": document})
    return record


ADMIN = f"{{id: fr/anna, name: A, roles: [admin], signing_key: '{ANNA.public}'}}"
ENGINEER = ADMIN.replace("admin", "engineer")
DRAFT = Ruling(job=JOB, round=1, site="fr-1", action="reject", reason="broken disks", by="fr/anna")


def rows(world: Any, folder: Path) -> list[dict[str, Any]]:
    """Build and verify the report on France; return its rounds."""
    with world.log(folder) as log:
        made = build_report(partner="fr", period=b.PERIOD, log=log, sites=world.sites, trust=world.trust,
                            key=world.keys["server"], made_ms=1_777_000_000_123)  # fmt: skip
    found: list[dict[str, Any]] = made["figures"]["rounds"]
    return found


def agreed(world: Any, change: Callable[[dict[str, Any]], object]) -> Record:
    """Record an honest round of which the signed digests are changed."""
    body = dict(world.round(JOB, 1, {"de-1": 3000, "fr-1": 1000}).body)
    world.records.clear()
    world.heads.clear()
    change(body)
    record: Record = world.add("server", RecordType.ROUND, body)
    return record


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda body: body["signed"]["fr-1"].update(digest="sha256:invented"), "the digest of outer/1 by fr-1"),
        (lambda body: body["signed"].update({"de-1": body["signed"]["fr-1"]}), "the digest of outer/1 by de-1"),
        (lambda body: body["signed"].pop("de-1"), "not those that sites signed"),
        (lambda body: body["signed"]["fr-1"].pop("digest"), "not a digest and its signature"),
        (lambda body: body.update(signed=["fr-1"]), "record server:0"),
        (lambda body: body["signed"].update(server=body["signed"]["fr-1"]), "no trusted key for site 'server'"),
    ],
)
def test_a_server_cannot_say_what_state_a_site_came_to(tmp_path: Path, change: Any, said: str) -> None:
    world = b.World()
    agreed(world, change)
    with pytest.raises(VerificationError, match=said):
        rows(world, tmp_path)


def test_a_round_whose_digests_nobody_signed_is_the_servers_word(tmp_path: Path) -> None:
    for change, grade in ((lambda body: None, "cross-checked"), (lambda body: body.pop("signed"), "declared")):
        world = b.World()
        agreed(world, change)
        assert [row["evidence"] for row in rows(world, tmp_path / grade)] == [grade]


def test_signatures_that_most_sites_left_out_raise_no_grade(tmp_path: Path) -> None:
    def only_one(body: dict[str, Any]) -> None:
        body["signed"].pop("fr-1")
        body["round"] = body["round"] | {"outer_digests": {"de-1": "sha256:after"}}

    world = b.World()
    agreed(world, only_one)
    assert [(row["evidence"], row["outer_digest"]) for row in rows(world, tmp_path)] == [("declared", "sha256:after")]


def test_the_server_is_no_site_and_judges_nothing(tmp_path: Path) -> None:
    world = b.World()
    commits = commits_of(world, {"fr-1": 10**9, "server": 1})
    put(world, commits, verdicts_of(world, commits, ("fr-1", "server")), outer_digests={"fr-1": "sha256:after"})
    with pytest.raises(VerificationError, match="no trusted key for site 'server'"):
        rows(world, tmp_path)


def test_the_server_meters_nothing(tmp_path: Path) -> None:
    world = b.World()
    row = UsageRow(leg="leg-x", epoch="1.1", job="job-x", account="fr", site="server", flavor="h100-sxm", gpus=8000,
                   start_ms=b.START, end_ms=b.START + b.HOUR)  # fmt: skip
    world.usage(row)
    with pytest.raises(VerificationError, match="server may not write usage records"):
        rows(world, tmp_path)


def test_a_site_writes_no_record_that_is_the_servers(tmp_path: Path) -> None:
    world = b.World()
    world.add("fr-1", RecordType.DATASET, {"dataset": b.dataset("laws", "fr-1"), "job": "", "leg": ""})
    with pytest.raises(VerificationError, match="fr-1 may not write dataset records"):
        rows(world, tmp_path)


Forge = Callable[[Any, list[Commit], list[Verdict]], Any]
FORGED: list[tuple[Forge, str]] = [
    (lambda w, c, v: put(w, [*c, *commits_of(w, {"fr-1": 10**12}, job="job-huge", number=7)], v), "another round"),
    (lambda w, c, v: put(w, c, [*v, replace(v[0], round=2)]), "another round"),
    (lambda w, c, v: put(w, [*c, c[1], c[1]], v), "fr-1 stands in the round with two commits"),
    (lambda w, c, v: put(w, [*c, *commits_of(w, {"uy-1": -11999})], v), "of -11999 tokens"),
    (lambda w, c, v: put(w, c, v, outer_digests={"nobody": "sha256:evil"}), "no trusted key for site 'nobody'"),
    (lambda w, c, v: put(w, c, v, certificate=None), "no certificate"),
    (lambda w, c, v: (put(w, c, v), put(w, c, v)), "stands in record server:0 too"),
    (lambda w, c, v: (put(w, c, v), put(w, c, [])), "stands in record server:0 too"),
    (lambda w, c, v: put(w, c, v, rulings=(DRAFT,)), "in no partner's roster"),
    (lambda w, c, v: (roster(w, ADMIN), put(w, c, v, rulings=(DRAFT,))), "signature of the ruling"),
    (lambda w, c, v: (roster(w, ENGINEER), put(w, c, v, rulings=(sign_value(ANNA, DRAFT),))), "no admin"),
    (lambda w, c, v: (roster(w, ADMIN, expires_ms=2), put(w, c, v, rulings=(sign_value(ANNA, DRAFT),))), "roster"),
    (lambda w, c, v: put(w, c, v, rulings=(replace(DRAFT, round=2),)), "a later round"),
    (lambda w, c, v: put(w, c, v, rulings=(replace(DRAFT, job="job-u"),)), "another job"),
]  # fmt: skip


@pytest.mark.parametrize(("forge", "why"), FORGED)
def test_a_round_with_parts_that_are_not_its_own_is_found(tmp_path: Path, forge: Forge, why: str) -> None:
    world = b.World()
    commits = commits_of(world, {"de-1": 3000, "fr-1": 1000})
    forge(world, commits, verdicts_of(world, commits))
    with pytest.raises(VerificationError, match=why):
        rows(world, tmp_path)


def test_a_ruling_that_an_admin_signed_holds_after_the_admin_has_left(tmp_path: Path) -> None:
    world = b.World()
    commits = commits_of(world, {"de-1": 3000, "fr-1": 1000})
    ruling = sign_value(ANNA, DRAFT)
    roster(world, ADMIN)
    world.add("server", RecordType.APPROVAL, {"kind": "ruling", "job": JOB, "ruling": ruling})
    roster(world, version=2)
    put(world, commits, verdicts_of(world, commits), rulings=(ruling,))
    (row,) = rows(world, tmp_path)
    assert (row["accepted"], row["refused_for"]) == (False, ["left out"])


def test_an_older_version_of_a_roster_brings_nobody_back(tmp_path: Path) -> None:
    world = b.World()
    commits = commits_of(world, {"de-1": 3000, "fr-1": 1000})
    roster(world, version=2)
    roster(world, ADMIN, version=1)
    put(world, commits, verdicts_of(world, commits), rulings=(sign_value(ANNA, DRAFT),))
    with pytest.raises(VerificationError, match="roster"):
        rows(world, tmp_path)


def test_only_sites_that_the_round_counts_say_what_came_of_it_and_judge(tmp_path: Path) -> None:
    world = b.World()
    commits = commits_of(world, {"fr-1": 1000})
    put(world, commits, verdicts_of(world, commits, ("fr-1", "uy-1")),
        outer_digests={"fr-1": "sha256:after", "uy-1": "sha256:other"})  # fmt: skip
    (row,) = rows(world, tmp_path)
    assert (row["outer_digest"], row["accepting_judges"]) == ("sha256:after", ["fr-1"])
    assert row["evidence"] == "declared", "no site of another partner had a vote"
