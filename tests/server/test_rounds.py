"""Rounds: commits, verdicts, certificate, agreeing outer states; quorum after the grace; a dispute fails the job."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consortium.accounting.periods import period_of
from consortium.domain.codec import from_json
from consortium.domain.data import ArtifactClass
from consortium.domain.job import JobKind, LegState, Resources
from consortium.domain.pretraining import PretrainConfig
from consortium.domain.records import RecordType, ReExecution
from consortium.domain.training import Certificate, Commit, Round, Verdict
from consortium.keys.signing import sign_value, verify_value
from consortium.reports.verify import verify_report
from consortium.train.evidence import check_agreed
from consortium.train.rounds import check_certificate
from consortium.train.sizes import flops_per_token
from tests.server.test_commands import As
from tests.server.test_commands import person as person

pytestmark = pytest.mark.integration
NAMES = ("de-1", "fr-1", "uy-1")


class Training:
    """A federated pretrain job under way at three scripted sites."""

    def __init__(self, fed: Any, min_sites: int, quorum: int = 0) -> None:
        self.fed = fed
        self.sites = {name: fed.site(name) for name in NAMES}
        words = {"attributes": {"vocab_size": "1024"}}
        inputs = [fed.dataset(n, f"tokens-{n}-{secrets.token_hex(3)}", ArtifactClass.TOKENS, **words) for n in NAMES]
        params = fed.params("pretrain")
        params |= {"outer": params["outer"] | {"quorum": quorum}}
        spec = fed.spec(inputs, kind=JobKind.PRETRAIN, params=params, min_sites=min_sites,
                        resources=Resources(gpus=1, walltime_s=600))  # fmt: skip
        answer = fed.submit(spec)
        assert answer.status_code == 201, answer.text
        self.job = answer.json()["id"]
        assert answer.json()["state"] == "pending", answer.text
        self.offers = {name: site.hold(self.job) for name, site in self.sites.items()}
        for name, site in self.sites.items():
            site.wait_start(self.offers[name])
            site.say(self.offers[name].leg, self.offers[name].epoch, LegState.RUNNING)

    def post(self, name: str, path: str, body: Any) -> Any:
        return self.sites[name].post(f"/v1/jobs/{self.job}/{path}", self.fed.to_json(body))

    def commit(self, name: str, number: int, digest: str = "") -> Any:
        commit = Commit(job=self.job, round=number, site=name, tokens=100, steps=5,
                        digest=digest or f"sha256:{name}{number}", norm=(1.0).hex(), loss=(2.0).hex())  # fmt: skip
        return self.post(name, f"rounds/{number}/commit", sign_value(self.sites[name].key, commit))

    def judge(self, name: str, number: int, sites: tuple[str, ...] = NAMES) -> Any:
        given = [
            sign_value(
                self.sites[name].key,
                Verdict(job=self.job, round=number, judge=name, site=s, digest=f"sha256:{s}{number}", accept=True),
            )
            for s in sites
        ]
        return self.post(name, f"rounds/{number}/verdicts", given)

    def agree(self, name: str, topic: str, digest: str) -> Any:
        statement = {"job": self.job, "topic": topic, "site": name, "digest": digest}
        return self.post(name, f"agreements/{topic}", sign_value(self.sites[name].key, statement))

    def round(self, number: int) -> Round:
        return from_json(Round, self.fed.get(f"/v1/jobs/{self.job}/rounds/{number}", who="fr-1"))

    def phase(self, number: int, wanted: str) -> Round:
        for site in self.sites.values():
            site.poll()
        found = self.fed.until(lambda: (r := self.round(number)).phase == wanted and r)
        assert isinstance(found, Round)
        return found

    def cancel(self) -> None:
        self.fed.call("fr/amelie", "POST", f"/v1/jobs/{self.job}/cancel")
        self.end()

    def end(self) -> None:
        for name, site in self.sites.items():
            site.say(self.offers[name].leg, self.offers[name].epoch, LegState.STOPPED)


def test_two_rounds_from_commits_to_a_closed_round_on_record(fed: Any, person: As, tmp_path: Path) -> None:
    job = Training(fed, min_sites=3)
    for name in NAMES:
        assert job.agree(name, "outer/0", "sha256:start").status_code == 200
    told = fed.get(f"/v1/jobs/{job.job}/agreements/outer/0?signed=true", who="fr-1")
    assert sorted(told) == list(NAMES)
    for name, said in told.items():
        statement = {"job": job.job, "topic": "outer/0", "site": name, **said}
        verify_value(job.sites[name].key.public, statement)
    for number in (-1, 0, 99):
        assert job.commit("de-1", number).status_code == 422, "a job has its rounds and no others"
    assert job.round(1).phase == "open"
    assert job.round(1).expected == NAMES
    early = job.commit("de-1", 2)
    assert early.status_code == 409
    assert "round 1 comes first" in early.json()["detail"]
    for name in NAMES:
        assert job.judge(name, 1).status_code == 409, "nothing is judged before the commits are fixed"
        assert job.commit(name, 1).status_code == 200
        assert job.commit(name, 1).status_code == 200, "a commit may be repeated"
        if name == "de-1":
            _is_not_seen(fed, job)
    job.phase(1, "judging")
    assert job.judge("de-1", 1, ("fr-9",)).status_code == 422
    late = job.commit("de-1", 1, "sha256:else")
    assert late.status_code == 409
    for name in NAMES:
        assert job.judge(name, 1).status_code == 200
    certified = job.phase(1, "certified")
    assert certified.certificate is not None
    assert certified.certificate.previous_outer == "sha256:start"
    assert [c.weight for c in certified.certificate.contributions] == [(1 / 3).hex()] * 3
    check_certificate(certified, "sha256:start")
    verify_value(fed.trust.server_key, certified.certificate, what="the certificate")
    for name in NAMES:
        assert job.agree(name, "outer/1", "sha256:one").status_code == 200
    job.phase(1, "closed")
    for name in NAMES:
        assert job.commit(name, 2).status_code == 200
    job.phase(2, "judging")
    for name in NAMES:
        job.judge(name, 2)
    second = job.phase(2, "certified")
    assert isinstance(second.certificate, Certificate)
    assert second.certificate.previous_outer == "sha256:one"
    assert len(fed.get(f"/v1/jobs/{job.job}/rounds")) == 2
    assert [one["number"] for one in fed.get(f"/v1/jobs/{job.job}/rounds?after=1")] == [2]
    drawn = person("fr/amelie", "show", job.job, "--plot", str(tmp_path / "training.png"))
    assert drawn.code == 0, drawn.err
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    (point,) = fed.get(f"/v1/jobs/{job.job}/curves")["points"]
    assert point == {"round": 1, "tokens": 300, "losses": dict.fromkeys(NAMES, 2.0)}
    record = next(r for r in fed.records("server") if r["type"] == "round" and r["body"]["job"] == job.job)
    assert record["body"]["outer_digest"] == "sha256:one"
    assert from_json(Round, record["body"]["round"]).number == 1
    assert check_agreed(fed.trust, job.job, "outer/1", record["body"]["signed"]) == dict.fromkeys(NAMES, "sha256:one")
    _who_brought_what(fed, job, person)
    job.cancel()
    _resumed(fed, person, job.job)


def _is_not_seen(fed: Any, job: Training) -> None:
    """While the round takes commits the first one is shown to nobody but who made it."""
    for who in ("fr/amelie", *NAMES):
        for path in ("rounds/1", "rounds"):
            found = fed.get(f"/v1/jobs/{job.job}/{path}", who=who)
            found = found if path == "rounds/1" else found[0]
            assert [one["site"] for one in found["commits"]] == (["de-1"] if who == "de-1" else [])
            assert found["committed"] == ["de-1"]
    assert job.commit("uy-1", 1, "sha256:de-11").status_code == 409, "it is another's"


def _resumed(fed: Any, person: As, job: str) -> None:
    """What was cut off after its first round goes on with what is left, as the same training and nothing else."""
    again = ("submit", "pretrain", "--resume", job, "--json")
    fed.until(lambda: fed.job(job)["state"] == "cancelled")
    done = person("fr/amelie", *again, "walltime_s=900", "outer.quorum=2")
    assert done.code == 0, done.err
    spec, old = json.loads(done.out)["spec"], fed.job(job)["spec"]
    assert (spec["inputs"], spec["sites"], spec["resources"]["walltime_s"]) == (old["inputs"], list(NAMES), 900)
    begins = {key: spec["params"]["start"][key] for key in ("job", "round", "resume", "done")}
    assert begins == {"job": job, "round": 1, "resume": True, "done": 1}
    assert spec["params"]["outer"]["rounds"] == old["params"]["outer"]["rounds"] - 1
    assert "stays as it was" in person("fr/amelie", *again, "optim.lr=0.1").err
    assert "a cosine rate comes down over 4 rounds, not 9" in person("fr/amelie", *again, "outer.rounds=9").err
    assert "ended with round 1" in person("fr/amelie", *again, "start.round=2").err
    assert "all 1 rounds" in person("fr/amelie", *again, "outer.rounds=1").err
    person("fr/amelie", "cancel", json.loads(done.out)["id"])


def _who_brought_what(fed: Any, job: Training, person: As) -> None:
    """After the first round: by site and partner, with what was done again of it, and who says so."""
    site = job.sites["fr-1"]
    again = ReExecution(job=job.job, round=1, site="fr-1", digest="sha256:fr-11", same_bits=True, distance=(0.0).hex(),
                        cosine=(1.0).hex(), tolerance=(0.2).hex(), drawn=(1,))  # fmt: skip
    site.record(RecordType.RE_EXECUTION, fed.to_json(again))
    assert site.push().status_code == 200
    job.sites["de-1"].record(RecordType.RE_EXECUTION, fed.to_json(again))
    assert "another's to record" in job.sites["de-1"].push().text
    job.sites["de-1"].chain.pop()
    seen = sign_value(fed.people["fr/claire"], replace(again, site="de-1", digest="sha256:de-11", by="fr/claire"))
    job.sites["de-1"].record(RecordType.RE_EXECUTION, fed.to_json(seen))
    assert job.sites["de-1"].push().status_code == 200
    brought = fed.get(f"/v1/jobs/{job.job}/attribution")
    model = PretrainConfig.of(fed.params("pretrain")).model
    assert brought["flops_per_token"] == flops_per_token(model, 1024)
    assert [(row["round"], row["site"], row["weight"], row["re_executed_by"]) for row in brought["rounds"]] == [
        (1, "de-1", 1 / 3, ["fr/claire at de-1"]), (1, "fr-1", 1 / 3, ["fr-1"]), (1, "uy-1", 1 / 3, [])
    ]  # fmt: skip
    row = brought["partners"]["fr"]
    assert (row["tokens"], row["evidence"], row["bytes_sent"], row["loss_share_nats"]) == (100, "declared", None, None)
    assert row["model_flops"] == 300 * flops_per_token(model, 1024)
    assert brought["partners"]["de"]["evidence"] == "re-executed", "under the eyes of France's auditor"

    def on_record() -> Any:
        told = fed.get(f"/v1/reports/de?period={period_of(time.time_ns() // 1_000_000)}", who="de/bernd")
        mine = [row for row in told["figures"]["rounds"] if row["job"] == job.job]
        return mine and mine[0]["work_evidence"] == "re-executed" and told

    verify_report(fed.until(on_record), fed.trust)
    shown = person("fr/amelie", "show", job.job)
    assert shown.code == 0, shown.err
    assert "below 10^23" in shown.out
    assert json.loads(person("fr/amelie", "show", job.job, "--json").out)["attribution"]["partners"]["fr"] == row


def test_an_admin_rejects_a_site_and_the_list_of_rounds_says_so(fed: Any, person: As) -> None:
    job = Training(fed, min_sites=2)
    who = ("round", "reject", job.job, "uy-1", "--reason", "its numbers are not its own")
    refused = person("fr/amelie", *who)
    assert refused.code == 2, refused.err
    assert "fr/amelie is not admin" in refused.err
    done = person("fr/bruno", *who)
    assert done.code == 0, done.err
    assert "left out from round 1 on" in done.err
    for name in NAMES:
        job.commit(name, 1)  # uy-1's may come too late: nobody waits for it
    fixed = tuple(commit.site for commit in job.phase(1, "judging").commits)
    for name in fixed:
        job.judge(name, 1, fixed)
    certified = job.phase(1, "certified")
    assert [part.site for part in check_certificate(certified, "").contributions] == ["de-1", "fr-1"]
    assert person("fr/bruno", "round", "readmit", job.job, "uy-1", "--round", "1", "--reason", "x").code == 2
    (row,) = json.loads(person("fr/amelie", "round", "ls", job.job, "--json").out)
    assert (row["round"], row["left_out"], row["weights"]) == (1, ["uy-1"], {"de-1": 0.5, "fr-1": 0.5})
    assert "left out" in person("fr/amelie", "round", "ls", job.job).out
    gone = person("fr/bruno", "job", "withdraw-site", job.job, "uy-1", "--reason", "its GPUs are needed")
    assert "withdrawn from round 2 on" in gone.err
    for name in NAMES:
        job.agree(name, "outer/1", "sha256:one")
    job.phase(1, "closed")
    fed.until(lambda: job.sites["uy-1"].poll().stops)
    job.sites["uy-1"].say(job.offers["uy-1"].leg, job.offers["uy-1"].epoch, LegState.STOPPED)
    assert fed.until(lambda: (shown := fed.job(job.job))["target_sites"] == ["de-1", "fr-1"] and shown)["state"] == (
        "running"
    )
    given = [r["body"]["ruling"] for r in fed.records("server") if r["body"].get("kind") == "ruling"]
    assert [one["action"] for one in given] == ["reject", "withdraw"]
    job.cancel()


def test_a_quorum_goes_on_after_the_grace(fed: Any) -> None:
    job = Training(fed, min_sites=2, quorum=2)
    for name in ("de-1", "fr-1"):
        job.commit(name, 1)
    fixed = job.phase(1, "judging")
    assert [commit.site for commit in fixed.commits] == ["de-1", "fr-1"]
    for name in ("de-1", "fr-1"):
        job.judge(name, 1, ("de-1", "fr-1"))
    assert [c.site for c in job.phase(1, "certified").certificate.contributions] == ["de-1", "fr-1"]  # type: ignore[union-attr]
    for name in ("de-1", "fr-1"):
        assert job.agree(name, "outer/1", "sha256:one").status_code == 200
    job.phase(1, "closed")
    late = job.agree("uy-1", "outer/1", "sha256:two")
    assert late.status_code == 409, "what a round was closed with stays, whoever comes late with something else"
    assert "closed with the outer state sha256:one" in late.json()["detail"]
    assert job.agree("uy-1", "outer/1", "sha256:one").status_code == 200
    job.cancel()


def test_outer_states_that_differ_end_the_job_in_a_dispute(fed: Any) -> None:
    job = Training(fed, min_sites=3)
    for name in NAMES:
        job.commit(name, 1)
    job.phase(1, "judging")
    for name in NAMES:
        job.judge(name, 1)
    job.phase(1, "certified")
    job.agree("de-1", "outer/1", "sha256:one")
    job.agree("fr-1", "outer/1", "sha256:two")
    job.phase(1, "disputed")
    shown = fed.job(job.job)
    assert shown["state"] == "failed"
    assert shown["reason"]["code"] == "dispute"
    assert "fr-1" in shown["reason"]["message"]
    job.end()


def test_nobody_commits_judges_or_agrees_for_another_site(fed: Any) -> None:
    job = Training(fed, min_sites=3)
    stolen = Commit(
        job=job.job, round=1, site="de-1", tokens=1, steps=1, digest="sha256:x", norm="0x0p+0", loss="0x0p+0"
    )
    answer = job.post("fr-1", "rounds/1/commit", sign_value(job.sites["fr-1"].key, stolen))
    assert answer.status_code == 403
    unsigned = job.post("de-1", "rounds/1/commit", stolen)
    assert unsigned.status_code == 409
    assert unsigned.json()["type"] == "urn:consortium:verification-failed"
    assert (
        job.post("fr-1", "agreements/tokenizer", {"site": "de-1", "digest": "d", "signature": "s"}).status_code == 403
    )
    job.cancel()
