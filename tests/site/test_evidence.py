"""What admins ruled reaches a leg only over a signature that a partner's roster vouches for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from consortium.domain.codec import to_json
from consortium.domain.partner import Person, Role
from consortium.domain.training import Commit, Round, RoundPhase, Ruling
from consortium.errors import VerificationError
from consortium.keys.roster import Rosters
from consortium.keys.signing import SigningKey, sign_value
from consortium.site.db import SiteDb
from consortium.site.gateway.evidence import check_round
from consortium.site.rulings import VerifiedRulings
from tests.site.world import World

BRUNO, AMELIE, BERND = (SigningKey.generate() for _ in range(3))
ROSTERS = Rosters(
    {
        person: Person(id=person, name=person, roles=(role,), signing_key=key.public)
        for person, role, key in (
            ("fr/bruno", Role.ADMIN, BRUNO),
            ("fr/amelie", Role.ENGINEER, AMELIE),
            ("de/bernd", Role.ADMIN, BERND),
        )
    }
)


def test_only_rulings_of_admins_who_may_reach_a_leg(tmp_path: Path) -> None:
    world = World(tmp_path)
    offer = world.offer(peers=("de-1", "fr-1"))
    assert offer.spec.spec.account == "fr"
    draft = Ruling(job=offer.job, round=2, site="de-1", action="reject", reason="broken disks", by="fr/bruno")

    def relayed(*rulings: Ruling, number: int = 2) -> Round:
        told = Round(job=offer.job, number=number, phase=RoundPhase.OPEN, expected=("fr-1",), rulings=rulings)
        return check_round(world.trust, offer, number, to_json(told), lambda: ROSTERS)

    true = sign_value(BRUNO, draft)
    own = sign_value(BERND, replace(draft, by="de/bernd"))
    assert relayed(true, own).rulings == (true, own)
    for false, why in (
        (replace(true, site="fr-1"), "does not hold"),
        (sign_value(AMELIE, replace(draft, by="fr/amelie")), "no admin"),
        (sign_value(BERND, replace(draft, by="de/bernd", site="fr-1")), "not de/bernd's to give"),
        (sign_value(BERND, replace(draft, by="de/bernd", action="readmit")), "not de/bernd's to give"),
        (sign_value(BRUNO, replace(draft, by="fr/nobody")), "in no partner's roster"),
        (sign_value(BRUNO, replace(draft, round=3)), "a later round"),
    ):
        with pytest.raises(VerificationError, match=why):
            relayed(true, false)


def test_a_ruling_that_was_verified_once_holds_whatever_becomes_of_who_ruled(tmp_path: Path) -> None:
    world = World(tmp_path)
    offer = world.offer(peers=("de-1", "fr-1"))
    draft = Ruling(job=offer.job, round=2, site="de-1", action="reject", reason="broken disks", by="fr/bruno")
    true, people = sign_value(BRUNO, draft), ROSTERS.person("fr/bruno")
    home = tmp_path / "home"
    home.mkdir()

    def relayed(rosters: Rosters, *rulings: Ruling, job: str = offer.job) -> tuple[Ruling, ...]:
        told = Round(job=job, number=40, phase=RoundPhase.OPEN, expected=("fr-1",), rulings=rulings)
        db = SiteDb(home)  # as after a restart
        try:
            theirs = replace(offer, job=job)
            return check_round(world.trust, theirs, 40, to_json(told), lambda: rosters, VerifiedRulings(db)).rulings
        finally:
            db.close()

    left = [
        Rosters({}),
        Rosters({people.id: replace(people, signing_key=BERND.public)}),
        Rosters({people.id: replace(people, roles=(Role.ENGINEER,))}),
    ]
    for rosters in left:
        with pytest.raises(VerificationError):
            relayed(rosters, true)
    assert relayed(ROSTERS, true) == (true,)
    for rosters in left:
        assert relayed(rosters, true) == (true,)
        never = [
            sign_value(BRUNO, replace(draft, round=3)),
            replace(true, site="fr-1"),
            replace(true, signature=sign_value(AMELIE, draft).signature),
        ]
        for false in never:
            with pytest.raises(VerificationError):
                relayed(rosters, true, false)
        with pytest.raises(VerificationError):
            relayed(rosters, replace(true, job="job-0000000000000000000000000b"), job="job-0000000000000000000000000b")


def test_a_leg_that_catches_up_reads_what_a_site_committed_that_has_left_since(tmp_path: Path) -> None:
    world = World(tmp_path)
    offer = world.offer(peers=("fr-1",))
    commit = Commit(
        job=offer.job, round=1, site="de-1", tokens=1, steps=1, digest="sha256:d", norm="0x1p+0", loss="0x1p+0"
    )
    kept = sign_value(world.signing["de-1"], commit)

    def relayed(commit: Commit) -> Round:
        told = Round(job=offer.job, number=1, phase=RoundPhase.OPEN, expected=("fr-1",), commits=(commit,))
        return check_round(world.trust, offer, 1, to_json(told))

    assert relayed(kept).commits == (kept,)
    for false in (sign_value(world.signing["fr-1"], commit), sign_value(BRUNO, replace(commit, site="xx-1"))):
        with pytest.raises(VerificationError):
            relayed(false)
