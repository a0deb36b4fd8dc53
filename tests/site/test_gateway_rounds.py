"""What of rounds passes the gateway, both ways: only what is signed, and no text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from consortium.domain.codec import to_json
from consortium.domain.training import Commit, Round, RoundPhase, Ruling, Verdict
from consortium.keys.signing import SigningKey, sign_value
from consortium.train.rounds import certify
from tests.site.border import Border

pytestmark = pytest.mark.integration


def signed_round(border: Border, **changed: Any) -> dict[str, Any]:
    """A certified round of fr-1 and de-1 as the server relays it, with one part `changed` after it was signed."""
    world, job = border.world, border.offer.job
    commits = [
        sign_value(
            world.signing[site],
            Commit(
                job=job, round=1, site=site, tokens=10, steps=1, digest=f"sha256:{site}", norm="0x1p+0", loss="0x1p+0"
            ),
        )
        for site in ("de-1", "fr-1")
    ]
    verdicts = [
        sign_value(
            world.signing[judge], Verdict(job=job, round=1, judge=judge, site=c.site, digest=c.digest, accept=True)
        )
        for judge in ("de-1", "fr-1")
        for c in commits
    ]
    certificate = sign_value(world.server_key, certify(job, 1, "sha256:0", commits, verdicts))
    fields: dict[str, Any] = {"commits": tuple(commits), "verdicts": tuple(verdicts), "certificate": certificate}
    for name, change in changed.items():
        whole = fields[name]
        fields[name] = (change(whole[0]), *whole[1:]) if isinstance(whole, tuple) else change(whole)
    phase, expected = RoundPhase.CERTIFIED, ("de-1", "fr-1")
    answer: dict[str, Any] = to_json(Round(job=job, number=1, phase=phase, expected=expected, **fields))
    return answer


def test_a_round_reaches_a_leg_only_with_signatures_that_hold(border: Border) -> None:
    told: dict[str, Any] = {}
    border.server.route("GET", r"/v1/jobs/[^/]+/rounds/1")(lambda body, query: told["round"])
    told["round"] = signed_round(border)
    assert border.http.get("/leg/rounds/1", headers=border.leg).json() == told["round"]
    mallory = SigningKey.generate()
    forgeries: list[dict[str, Any]] = [
        {"commits": lambda it: replace(it, tokens=10_000)},
        {"commits": lambda it: sign_value(border.world.server_key, replace(it, site="server"))},
        {"verdicts": lambda it: replace(it, accept=False)},
        {"verdicts": lambda it: sign_value(mallory, it)},
        {"certificate": lambda it: replace(it, contributions=it.contributions[:1])},
        {"certificate": lambda it: sign_value(border.world.server_key, replace(it, round=2))},
    ]
    for forged in forgeries:
        told["round"] = signed_round(border, **forged)
        answer = border.http.get("/leg/rounds/1", headers=border.leg)
        assert answer.json()["type"] == "urn:consortium:verification-failed", answer.text


def test_a_ruling_that_reached_a_leg_once_does_so_after_who_ruled_has_left(border: Border) -> None:
    world, bruno, told = border.world, SigningKey.generate(), dict[str, Any]()
    border.server.route("GET", r"/v1/jobs/[^/]+/rounds/1")(lambda body, query: told["round"])
    people = f"{world.roster()}  - {{id: fr/bruno, name: Bruno, roles: [admin], signing_key: '{bruno.public}'}}\n"
    draft = Ruling(job=border.offer.job, round=1, site="de-1", action="reject", reason="broken disks", by="fr/bruno")
    told["round"] = signed_round(border) | {"rulings": to_json((sign_value(bruno, draft),))}
    for roster, status in ((world.roster(), 409), (people, 200), (world.roster(), 200)):
        world.sign("roster", "fr", roster, "roster-fr")
        assert border.http.get("/leg/rounds/1", headers=border.leg).status_code == status
    other = sign_value(bruno, replace(draft, reason="another"))
    told["round"]["rulings"].append(to_json(other))
    assert border.http.get("/leg/rounds/1", headers=border.leg).status_code == 409


def test_an_agreement_reaches_a_leg_only_if_its_site_signed_it(border: Border) -> None:
    statement = {"job": border.offer.job, "topic": "outer/1", "site": "de-1", "digest": "sha256:a"}
    signature = sign_value(border.world.signing["de-1"], statement)["signature"]
    told: dict[str, Any] = {"de-1": {"digest": "sha256:a", "signature": signature}}
    border.server.route("GET", r"/v1/jobs/[^/]+/agreements/outer/1")(lambda body, query: told)
    assert border.http.get("/leg/agreements/outer/1", headers=border.leg).json() == {"de-1": "sha256:a"}
    told["de-1"]["digest"] = "sha256:b"
    answer = border.http.get("/leg/agreements/outer/1", headers=border.leg)
    assert answer.json()["type"] == "urn:consortium:verification-failed"


TEXT = "Madame X, born on 3 March, lives in Lyon. "


COMMIT = {"tokens": 1, "steps": 1, "digest": f"sha256:{'0' * 64}", "norm": (1.5).hex(), "loss": (2.0).hex()}


VERDICT = {"site": "de-1", "digest": f"sha256:{'0' * 64}", "accept": False, "reason": "norm", "norm": (1.5).hex()}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        *(("rounds/1/commit", COMMIT | {name: TEXT}) for name in ("digest", "norm", "loss")),
        ("rounds/1/commit", COMMIT | {"norm": "0x1." + "0" * 60 + "p+0"}),
        ("rounds/1/commit", COMMIT | {"tokens": 10**400}),
        ("rounds/99999999999/commit", COMMIT),
        *(("rounds/1/verdicts", [VERDICT | {name: TEXT}]) for name in ("site", "digest", "norm", "reason")),
        ("rounds/1/verdicts", [VERDICT] * 3),
        ("agreements/outer/1", {"digest": TEXT}),
        ("agreements/" + TEXT, {"digest": COMMIT["digest"]}),
        ("agreements/..%2F..%2F..%2Fjobs%2Fjob-other%2Fcancel", {"digest": COMMIT["digest"]}),
        ("agreements/outer%3Fa=b", {"digest": COMMIT["digest"]}),
        ("progress", {TEXT: 1}),
        ("progress", {"phase": "two\nlines"}),
    ],
)
def test_what_rounds_say_is_digests_numbers_and_codes_and_no_text_or_path(border: Border, path: str, body: Any) -> None:
    assert border.http.post(f"/leg/{path}", json=body, headers=border.leg).status_code == 422
    assert border.server.heard == []


def test_commits_verdicts_and_agreements_reach_the_server_signed(border: Border) -> None:
    border.server.route("POST", r"/v1/jobs/[^/]+/(rounds/1/(commit|verdicts)|agreements/outer/1)")(lambda *_: {})
    said: dict[str, Any] = {"rounds/1/commit": COMMIT, "rounds/1/verdicts": [VERDICT, VERDICT | {"norm": ""}]}
    said["agreements/outer/1"] = {"digest": COMMIT["digest"]}
    for path, body in said.items():
        assert border.http.post(f"/leg/{path}", json=body, headers=border.leg).status_code == 200, path
    commit, verdicts, agreement = (heard.body for heard in border.server.heard)
    for signed in (commit, *verdicts, agreement):
        assert signed["signature"]
