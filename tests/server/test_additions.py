"""A site that is added to a training under way: asked for, placed between two rounds, counted from then on."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

import pytest

from consortium.domain.codec import from_json
from consortium.domain.data import ArtifactClass
from consortium.domain.job import JobKind, JobSpec, JobState, LegState, Resources, SignedSpec
from consortium.domain.training import Ruling
from consortium.errors import ConflictError
from consortium.keys.canonical import canonical
from consortium.keys.roster import Rosters
from consortium.keys.signing import sign_value
from consortium.server.additions import add_due, take_addition
from consortium.state import additions, data, rounds
from consortium.state.sites import update_site
from consortium.train.rounds import check_certificate
from tests.server.placed import ME, Running
from tests.server.test_commands import As
from tests.server.test_commands import person as person
from tests.server.test_rounds import Training

pytestmark = pytest.mark.integration
PAIR = ("de-1", "fr-1")
THREE = (*PAIR, "uy-1")
WORDS = {"attributes": {"vocab_size": "1024"}}


class Pair(Training):
    """A training under way at two sites, which a third is to join."""

    def __init__(self, fed: Any) -> None:
        self.fed = fed
        self.sites = {name: fed.site(name) for name in (*PAIR, "uy-1")}
        inputs = [fed.dataset(n, f"tokens-{n}-{secrets.token_hex(3)}", ArtifactClass.TOKENS, **WORDS) for n in PAIR]
        self.spec = fed.spec(inputs, kind=JobKind.PRETRAIN, params=fed.params("pretrain"), min_sites=2,
                             resources=Resources(gpus=1, walltime_s=600))  # fmt: skip
        answer = fed.submit(self.spec)
        assert answer.status_code == 201, answer.text
        self.job = answer.json()["id"]
        self.start(PAIR)

    def start(self, names: tuple[str, ...]) -> None:
        self.offers = {name: self.sites[name].hold(self.job) for name in names}
        for name, offer in self.offers.items():
            self.sites[name].wait_start(offer)
            self.sites[name].say(offer.leg, offer.epoch, LegState.RUNNING)

    def end(self) -> None:
        for name, offer in self.offers.items():
            self.sites[name].say(offer.leg, offer.epoch, LegState.STOPPED)

    def whole_round(self, number: int, names: tuple[str, ...], previous: str) -> tuple[str, ...]:
        for name in names:
            self.commit(name, number)
        self.phase(number, "judging")
        for name in names:
            self.judge(name, number, names)
        certificate = check_certificate(self.phase(number, "certified"), previous)
        for name in names:
            self.agree(name, f"outer/{number}", f"sha256:{number}")
        self.phase(number, "closed")
        return tuple(part.site for part in certificate.contributions)


def test_a_site_is_added_between_two_rounds_and_counts_from_there(fed: Any, person: As) -> None:
    job = Pair(fed)
    there = fed.dataset("uy-1", f"tokens-uy-1-{secrets.token_hex(3)}", ArtifactClass.TOKENS, **WORDS)
    add = ("job", "add-site", job.job, "uy-1")
    for name in PAIR:
        job.agree(name, "outer/0", "sha256:0")
    early = person("fr/amelie", *add, "--input", there.id)
    assert (early.code, "round 1 is not closed" in early.err) == (2, True), early.err
    assert job.whole_round(1, PAIR, "sha256:0") == PAIR
    assert "uy-1 is given nothing to train on" in person("fr/amelie", *add).err
    assert "is at uy-1, not at de-1" in person("fr/amelie", *add[:3], "de-1", "--input", there.id).err
    assert "fr/bruno cannot submit in the name of fr/amelie" in person("fr/bruno", *add, "--input", there.id).err
    barred = fed.dataset(
        "uy-1", f"people-{secrets.token_hex(3)}", ArtifactClass.TOKENS, categories=("personal",), **WORDS
    )
    denied = person("fr/amelie", *add, "--input", barred.id)
    assert (denied.code, "configs/policy/uy.yaml" in denied.err) == (3, True), denied.err
    _nothing_else_changes(fed, job, there.id)
    job.commit("de-1", 2)
    done = person("fr/amelie", *add, "--input", there.id)
    assert done.code == 0, done.err
    assert "another site is being added" in person("fr/amelie", *add, "--input", there.id).err
    for site in job.sites.values():
        assert not site.poll().stops, "a round is under way"
    full = job.sites["uy-1"].run(_fills_uruguay(fed))
    assert job.whole_round(2, PAIR, "sha256:1") == PAIR
    for _ in range(3):
        assert not any(site.poll().stops for site in job.sites.values()), "it could not be placed with uy-1 now"
    job.sites["uy-1"].succeed(full)
    for name in PAIR:
        (stop,) = fed.until(lambda name=name: job.sites[name].poll().stops)
        assert "uy-1 joins from round 3 on" in stop.reason
        assert stop.keep_s > 0, "what is trained meanwhile is kept"
    assert fed.job(job.job)["target_sites"] == ["de-1", "fr-1", "uy-1"]
    job.end()
    job.start(THREE)
    offer = job.offers["uy-1"]
    assert (offer.peers, [item.id for item in offer.inputs]) == (THREE, [there.id])
    assert offer.spec.spec == replace(job.spec, inputs=(*job.spec.inputs, there.id))
    assert job.round(3).expected == THREE
    assert job.whole_round(3, THREE, "sha256:2") == THREE
    brought = fed.get(f"/v1/jobs/{job.job}/attribution")["rounds"]
    assert {(row["round"], row["tokens"]) for row in brought if row["site"] == "uy-1"} == {(3, 100)}
    (said,) = [r["body"] for r in fed.records("server") if r["body"].get("kind") == "addition"]
    assert (said["job"], said["round"], said["sites"], said["by"]) == (job.job, 3, ["uy-1"], "fr/amelie")
    assert said["inputs"] == [there.id]
    signed = from_json(SignedSpec, {"spec": said["spec"], "signature": said["signature"]})
    assert signed == offer.spec
    for spec in (job.spec, offer.spec.spec):
        again = fed.submit(spec)
        assert (again.status_code, "starts no second job" in again.text) == (409, True), "neither starts a second job"
    job.cancel()


@pytest.mark.parametrize(("closed", "joins"), [(3, 4), (4, 0)])
def test_no_site_joins_once_the_last_round_is_closed(parts: Any, closed: int, joins: int) -> None:
    core, fed = parts
    running = Running(core, fed, *PAIR, min_sites=2)
    job = running.now()
    there = fed.new_dataset("uy-1", "tokens-uy-1", artifact_class=ArtifactClass.TOKENS, **WORDS)
    core.contacts.heard_site("uy-1", core.clock.now_ms())
    with core.db.write() as connection:
        data.insert_dataset(connection, there, now_ms=1, signer="fr/amelie", signature="x")
        update_site(connection, "uy-1", healthy=True, last_contact_ms=core.clock.now_ms())
        for number in range(1, closed + 1):
            rounds.open_round(connection, job.id, number, PAIR)
            rounds.change(connection, job.id, number, phase="closed")
        wider = replace(job.spec, inputs=(*job.spec.inputs, there.id))
        additions.put(connection, job, SignedSpec(spec=wider, signature="x"), 1)
    add_due(core)
    with core.db.read() as connection:
        (kept,) = additions.of_job(connection, job.id)
    state = JobState.PREEMPTING if joins else JobState.RUNNING
    assert (kept.round, running.now().state) == (joins, state), "the job has four rounds"


@pytest.mark.parametrize("vouched", [True, False])
def test_no_site_joins_a_training_with_a_ruling_that_it_could_not_verify(parts: Any, vouched: bool) -> None:
    core, fed = parts
    running = Running(core, fed, *PAIR, min_sites=2)
    job = running.now()
    there = fed.new_dataset("uy-1", "tokens-uy-1", artifact_class=ArtifactClass.TOKENS)
    core.contacts.heard_site("uy-1", core.clock.now_ms())
    one = Ruling(job=job.id, round=3, site="de-1", action="reject", reason="asked to", by="fr/bruno")
    with core.db.write() as connection:
        data.insert_dataset(connection, there, now_ms=1, signer="fr/amelie", signature="x")
        update_site(connection, "uy-1", healthy=True, last_contact_ms=core.clock.now_ms())
        for number in (1, 2):
            rounds.open_round(connection, job.id, number, PAIR)
            rounds.change(connection, job.id, number, phase="closed")
        rounds.add_ruling(connection, sign_value(fed.people["fr/bruno"], one), 1)
    if not vouched:
        left = {person.id: person for person in core.federation.rosters.people if person.id != "fr/bruno"}
        core.files.current = replace(core.federation, rosters=Rosters(left))
    wider = replace(job.spec, inputs=(*job.spec.inputs, there.id))
    signed = SignedSpec(spec=wider, signature=fed.people["fr/amelie"].sign(canonical(wider)))
    if vouched:
        take_addition(core, ME, job.id, signed)
    else:
        with pytest.raises(ConflictError, match="fr/bruno ruled on de-1 from round 3 on, and no site that is added"):
            take_addition(core, ME, job.id, signed)
        with core.db.write() as connection:  # asked for before who ruled left
            additions.put(connection, job, signed, 1)
    add_due(core)
    assert running.now().state is (JobState.PREEMPTING if vouched else JobState.RUNNING)


def _fills_uruguay(fed: Any) -> str:
    """A job that takes all GPUs of uy-1."""
    text = fed.dataset("uy-1", f"laws-uy-{secrets.token_hex(3)}")
    spec = fed.spec([text], submitter="uy/alma", account="uy", resources=Resources(gpus=4, walltime_s=600))
    answer = fed.submit(spec)
    assert answer.json()["state"] == "pending", answer.text
    return str(answer.json()["id"])


def _nothing_else_changes(fed: Any, job: Pair, there: str) -> None:
    """An amended spec names more inputs, and a submitter's signature on anything else adds nothing."""
    wider: JobSpec = replace(job.spec, inputs=(*job.spec.inputs, there))
    for spec in (replace(wider, min_sites=1), replace(wider, inputs=wider.inputs[1:]), replace(wider, sites=THREE)):
        answer = _add(fed, job.job, spec)
        assert answer.status_code == 422, answer.text
        assert "says all else as before" in answer.text
    forged = _add(fed, job.job, wider, key="fr/bruno")
    assert (forged.status_code, "does not hold" in forged.text) == (409, True), forged.text


def _add(fed: Any, job: str, spec: JobSpec, key: str = "fr/amelie") -> Any:
    body = {"spec": fed.to_json(spec), "signature": fed.people[key].sign(canonical(spec))}
    return fed.call("fr/amelie", "POST", f"/v1/jobs/{job}/additions", body)
