"""What a submission is judged by: names, accounts, keys of idempotency; and what is refused before it runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from consortium.domain.data import ArtifactClass
from consortium.domain.job import JobKind, Resources, SignedSpec
from consortium.errors import ConflictError, UsageError
from consortium.keys.canonical import canonical
from consortium.server import folding, submit
from consortium.state import data
from tests.server.placed import ME, at_work

pytestmark = pytest.mark.integration


def test_dry_run_stores_nothing(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    before = len(fed.get("/v1/jobs"))
    answer = fed.submit(fed.spec([laws]), dry_run=True)
    assert answer.status_code == 200
    assert answer.json()["funnel"]["reason"]["code"]
    assert len(fed.get("/v1/jobs")) == before


def test_what_a_clean_job_says_of_its_inputs_is_checked_when_it_is_submitted(fed: Any) -> None:
    fr, quiz, quiz_two = (fed.dataset("fr-1", name) for name in ("laws-fr", "quiz-fr", "quiz-two"))
    de, exam = (fed.dataset("de-1", name) for name in ("laws-de", "exam-de"))
    clean = fed.params("clean") | {"dedup": "near"}

    def refused(inputs: list[Any], against: tuple[str, ...] = (), order: tuple[str, ...] = ()) -> tuple[str, str, str]:
        params = clean | {
            "decontaminate": clean["decontaminate"] | {"against": list(against)},
            "across": clean["across"] | {"order": list(order)},
        }
        spec = fed.spec(inputs, params=params)
        answers = [fed.submit(spec, dry_run=True).json(), fed.submit(spec).json()]
        told = [(each.get("where", ""), each.get("detail", ""), each.get("fix", "")) for each in answers]
        assert told[0] == told[1]
        return told[0]

    where, what, fix = refused([fr, quiz], ("quizz-fr",))
    assert (where, what.split()[0]) == ("decontaminate.against", "'quizz-fr'")
    assert fix == "add it to inputs, or did you mean 'quiz-fr'?"
    where, what, _ = refused([quiz, quiz_two], ("quiz-fr", quiz_two.id))
    assert (where, "nothing to clean" in what) == ("decontaminate.against", True)
    where, what, fix = refused([fr, quiz, de], (f"quiz-fr@{quiz.version}",))
    assert (where, what) == (
        "decontaminate.against",
        "no evaluation set lives at de-1, where laws-de is to be cleaned",
    )
    assert fix.startswith("register one at de-1")
    where, what, _ = refused([fr, quiz, exam], ("quiz-fr", "exam-de"))
    assert (where, what.partition(",")[0]) == ("decontaminate.against", "exam-de is an evaluation set at de-1")
    where, what, fix = refused([fr, de], order=("fr",))
    assert (where, what.startswith("across.order does not name de")) == ("across.order", True)
    assert fix.startswith("across.order=[fr,de]")
    assert refused([fr, quiz, de, exam], ("quiz-fr", exam.id), ("de", "fr")) == ("", "", "")


def test_an_idempotency_key_holds_for_a_deadline_that_counts_from_the_submission(parts: Any) -> None:
    core, fed = parts
    laws = fed.new_dataset("fr-1", "laws-fr")
    with core.db.write() as connection:
        data.insert_dataset(connection, laws, now_ms=1, signer="fr/amelie", signature="x")
    now_ms, hours = core.clock.now_ms(), 3_600_000

    def submit_at(submitted_ms: int, deadline_ms: int, key: str) -> str:
        spec = fed.spec([laws], submitted_ms=submitted_ms, deadline_ms=deadline_ms)
        signed = SignedSpec(spec=spec, signature=fed.people["fr/amelie"].sign(canonical(spec)))
        return str(submit.submit(core, ME, signed, key)["id"])

    first = submit_at(now_ms, now_ms + 2 * hours, "in-two-hours")
    assert submit_at(now_ms + 5_000, now_ms + 5_000 + 2 * hours, "in-two-hours") == first
    assert submit_at(now_ms + 5_000, now_ms + 2 * hours, "in-two-hours") == first, "the same moment"
    for other in (now_ms + 3 * hours, 0):
        with pytest.raises(ConflictError, match="another submission"):
            submit_at(now_ms + 5_000, other, "in-two-hours")


def test_an_idempotency_key_makes_one_job_and_a_replayed_spec_none(fed: Any) -> None:
    laws = fed.dataset("uy-1", "laws-es")
    spec = fed.spec([laws], account="uy", submitter="uy/alma", resources=Resources(gpus=64, walltime_s=60))
    first = fed.submit(spec, idempotency_key="k1")
    again = fed.submit(replace(spec, nonce="another", submitted_ms=5), idempotency_key="k1")
    assert first.json()["id"] == again.json()["id"]
    other = fed.submit(replace(spec, name="other", nonce="x"), idempotency_key="k1")
    assert other.status_code == 409
    replayed = fed.submit(spec)
    assert replayed.status_code == 409
    assert "no second job" in replayed.json()["detail"]


def test_an_account_that_is_not_there_or_not_ones_own_is_named(fed: Any) -> None:
    laws = fed.dataset("fr-1", "laws-fr")
    fed.site("fr-1")
    missing = fed.submit(fed.spec([laws], account="zz"))
    assert missing.status_code == 404
    assert "zz" in missing.json()["detail"]
    other = fed.submit(fed.spec([laws], account="de/research"))
    assert other.status_code == 409
    assert "not its partner's" in other.json()["detail"]


def test_a_job_whose_outputs_could_not_be_registered_is_refused_before_it_runs(parts: Any) -> None:
    core, fed = parts
    with core.db.write() as connection:
        long = fed.new_dataset("fr-1", "l" * 58)
        short = fed.new_dataset("fr-1", "l" * 57)
        taken, theirs = fed.new_dataset("fr-1", "taken"), fed.new_dataset("de-1", "taken-clean")
        for item in (long, short, taken):
            data.insert_dataset(connection, item, now_ms=1)
        data.insert_dataset(connection, theirs, now_ms=1, job="job-of-an-older-ledger")

    def submitted_at(*inputs: Any, **changes: Any) -> Any:
        spec = fed.spec(list(inputs), **changes)
        signature = fed.people["fr/amelie"].sign(canonical(spec))
        return submit.submit(core, ME, SignedSpec(spec=spec, signature=signature), "")

    assert submitted_at(short)["state"] == "pending"
    with pytest.raises(UsageError, match="63 characters at most, not 64") as refused:
        submitted_at(long)
    assert refused.value.fix == "register it under a name of 57 characters at most"
    with pytest.raises(ConflictError, match="taken-clean is de's"):
        submitted_at(taken)
    clean = replace(short, id=fed.new_id("ds"), name="l" * 49, artifact_class=ArtifactClass.CLEAN)
    with core.db.write() as connection:
        data.insert_dataset(connection, clean, now_ms=1)
    tokenize = {"kind": JobKind.TOKENIZE, "params": fed.params("tokenize")}
    with pytest.raises(UsageError, match="tokens-heldout"):
        submitted_at(clean, **tokenize)
    without = {"params": tokenize["params"] | {"held_out_percent": 0}}
    assert submitted_at(clean, **(tokenize | without))["state"] == "pending"


def test_a_leg_takes_no_name_that_goes_with_another_partners_dataset(parts: Any) -> None:
    core, fed = parts
    job = at_work(core, fed)
    assert job.attempt is not None
    (leg,) = job.attempt.legs
    with core.db.write() as connection:
        data.insert_dataset(connection, fed.new_dataset("de-1", "laws-de"), now_ms=1)
        squat = fed.new_dataset("fr-1", "laws-de-clean", artifact_class=ArtifactClass.CLEAN, parents=leg.inputs)
        with pytest.raises(ConflictError, match="goes with laws-de"):
            folding._register_outputs(core, connection, job, leg, {"outputs": fed.to_json([squat])}, 2)
        (read,) = (data.find_dataset(connection, name) for name in leg.inputs)
        made = replace(
            read, id=fed.new_id("ds"), name=read.name + "-clean", artifact_class=ArtifactClass.CLEAN, parents=leg.inputs
        )
        assert folding._register_outputs(core, connection, job, leg, {"outputs": fed.to_json([made])}, 2) == [made.id]
