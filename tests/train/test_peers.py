"""What one site can do to another by what it sends, or does not: it ends no leg, and keeps none waiting for good."""

from __future__ import annotations

import tempfile
import threading
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from consortium.domain.data import ArtifactClass
from consortium.domain.pretraining import PretrainConfig
from consortium.domain.protocol import LegContext, StoreAccess
from consortium.domain.screening import ScreenRule
from consortium.domain.training import Commit, Round, RoundPhase
from consortium.errors import PolicyDeniedError, UsageError, VerificationError
from consortium.keys.canonical import digest as digest_of
from consortium.train.book import RoundBook
from consortium.train.codes import FP32
from consortium.train.joining import Joining
from consortium.train.keep import Contribution, OuterState
from consortium.train.outer import norm_of, to_bytes, vector_digest
from consortium.train.peers import INITIAL, OWED_ROUNDS, PASS_ON_S, Peers
from consortium.train.received import Asked, Received
from consortium.train.screen import Gates
from consortium.train.settle import Settling
from tests.train.conftest import PARAMS
from tests.train.hub import JOB, Hub, Line

SITES = ("de-1", "fr-1", "uy-1")
SIZE = 4


class Tired(Exception):
    """A leg waited for longer than the test does."""


def line(hub: Hub, site: str) -> Line:
    none = StoreAccess(endpoint="", bucket="", access_key="", secret_key="", prefix="")
    context = LegContext(
        job=JOB, job_kind="pretrain", job_name="t", attempt="", leg="", epoch="1.1", site=site, partner=site[:2],
        peers=SITES, params={}, inputs=(), gpus=1, gpus_per_worker=1, gpu_resource="sim_gpu", store=none,
    )  # fmt: skip
    return Line(hub, context, None)  # type: ignore[arg-type]  # no test here keeps anything


def peers(at: Line, *, looks: int = 5) -> Peers:
    """A peer for which each look at the clock is ten seconds later."""
    left, ticks = iter(range(looks)), count(0, 10)

    def sleep(seconds: float) -> None:
        if next(left, None) is None:
            raise Tired

    return Peers(at, SIZE, sleep=sleep, now_s=lambda: float(next(ticks)))


def made(site: str) -> Contribution:
    data = to_bytes(np.full(SIZE, 1 + SITES.index(site) / 10, np.float32))
    norm = norm_of(np.frombuffer(data, "<f4")).hex()
    return Contribution(round=1, previous_outer="x", data=data, digest=digest_of(data), norm=norm, loss="0x0p+0",
                        tokens=10, steps=1, position=0, moments=None)  # fmt: skip


@pytest.fixture
def hub() -> Hub:
    """A round in which all have committed; uy-1 sent its contribution to fr-1 only."""
    found = Hub(SITES)
    found.agreed["outer/0"] = dict.fromkeys(SITES, "x")
    for site in SITES:
        at, one = line(found, site), made(site)
        to = ["fr-1"] if site == "uy-1" else None
        at.send(ArtifactClass.PSEUDO_GRADIENT, "pseudo-gradient-1", one.data, round=1, recipients=to)
        at.commit(1, tokens=10, steps=1, digest=one.digest, norm=one.norm, loss=one.loss)
    return found


def judged(hub: Hub) -> Round:
    for site in SITES:
        peers(line(hub, site)).judge(hub.round(1), made(site), Gates(), SIZE)
    return hub.round(1)


def test_nobody_but_the_first_peer_says_what_training_begins_with():
    hub = Hub(SITES)
    evil, initial = np.full(SIZE, 666, np.float32), np.arange(SIZE, dtype=np.float32)
    for site, state in (("uy-1", evil), ("de-1", initial)):
        if site == "de-1":
            with pytest.raises(Tired):
                peers(line(hub, "fr-1")).receive_initial()
        line(hub, site).send(ArtifactClass.OUTER_STATE, INITIAL, to_bytes(state))
        line(hub, site).agree("outer/0", vector_digest(state))
    np.testing.assert_array_equal(peers(line(hub, "fr-1")).receive_initial(), initial)


def test_an_initial_state_that_is_not_finite_is_refused():
    hub = Hub(SITES)
    data = to_bytes(np.full(SIZE, np.nan, np.float32))
    line(hub, "de-1").send(ArtifactClass.OUTER_STATE, INITIAL, data)
    line(hub, "de-1").agree("outer/0", digest_of(data))
    with pytest.raises(VerificationError, match="not finite"):
        peers(line(hub, "fr-1")).receive_initial()


def test_what_one_judge_never_got_is_passed_on_by_another(hub: Hub):
    current = judged(hub)
    certificate = current.certificate
    assert certificate is not None
    assert [part.site for part in certificate.contributions] == [*SITES], "two of three had it"
    with pytest.raises(Tired):
        peers(line(hub, "de-1")).gather(certificate, made("de-1"), SIZE)

    now = [0.0]
    helper = Peers(line(hub, "fr-1"), SIZE, now_s=lambda: now[0])
    helper.gather(certificate, made("fr-1"), SIZE)
    helper.owe(current, certificate)
    helper.pass_on(current)
    sent = len(hub.artifacts)
    now[0] = 3 * PASS_ON_S
    helper.pass_on(current)
    helper.pass_on(current)
    assert len(hub.artifacts) == sent + 1, "once, and not at once: its sender may only have been slow"
    found = peers(line(hub, "de-1")).gather(certificate, made("de-1"), SIZE)
    np.testing.assert_array_equal(to_bytes(found["uy-1"]), made("uy-1").data)


def test_who_has_the_new_state_is_passed_nothing(hub: Hub):
    current = judged(hub)
    assert current.certificate is not None
    now = [0.0]
    helper = Peers(line(hub, "fr-1"), SIZE, now_s=lambda: now[0])
    helper.gather(current.certificate, made("fr-1"), SIZE)
    helper.owe(current, current.certificate)
    sent, now[0] = len(hub.artifacts), 9 * PASS_ON_S
    helper.pass_on(replace(current, outer_digests={"de-1": "y"}))
    assert len(hub.artifacts) == sent


def test_a_sender_whose_store_hangs_keeps_nobody_waiting_for_verdicts_on_the_others(hub: Hub, monkeypatch):
    monkeypatch.setattr("consortium.train.peers.SHORTEST_S", 0.1)
    monkeypatch.setattr("consortium.train.peers.LOOK_S", 0.05)
    hub.rounds[1] = current = replace(hub.rounds[1], phase=RoundPhase.JUDGING, deadline_ms=400)
    at, woken, told = line(hub, "fr-1"), threading.Event(), []

    def receive(artifact):
        if artifact.sender == "uy-1":
            assert woken.wait(60)
        return hub.receive("fr-1", artifact.digest)

    at.receive = receive
    at.verdicts = lambda number, verdicts: told.append({one["site"]: one["reason"] for one in verdicts})
    Peers(at, SIZE, sleep=lambda _: None, wall_s=lambda: 0.0).judge(current, made("fr-1"), Gates(), SIZE)
    assert told == [{"de-1": "", "fr-1": ""}, {"uy-1": "unreachable"}]
    hub.rounds[1] = replace(hub.rounds[1], phase=RoundPhase.CLOSED)
    Peers(at, SIZE, sleep=lambda _: None).judge(current, made("fr-1"), Gates(), SIZE)
    assert len(told) == 2, "a clock that is fast refuses nobody, and the server says when it is over"
    woken.set()


def test_what_is_received_lies_on_disk_and_leaves_nothing_there(hub: Hub, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = Received(line(hub, "fr-1"), FP32)
    for site in ("de-1", "uy-1"):
        found.take(1, site, made(site).digest, SIZE)
        held = found[made(site).digest]
        assert isinstance(np.asarray(held).base.obj.base, np.memmap)
        vector = found.decode(held, SIZE)
        assert np.shares_memory(vector, np.asarray(held)), "fp32 is not decoded into a copy"
    assert not list(tmp_path.iterdir()), "not even where the process is killed"
    found.clear({made("uy-1").digest})
    assert (made("de-1").digest in found, made("uy-1").digest in found) == (False, True)
    assert to_bytes(vector) == made("uy-1").data, "who holds it can still read it"


def test_nobody_spoils_a_contribution_by_announcing_something_else_before_its_sender_does():
    hub, one = Hub(SITES), made("de-1")
    short = one.digest.removeprefix("sha256:")[:16]
    commit = Commit(job=JOB, round=1, site="de-1", tokens=10, steps=1, digest=one.digest, norm=one.norm, loss=one.loss)
    line(hub, "uy-1").send(ArtifactClass.PSEUDO_GRADIENT, f"x.{short}.1.1", b"else", round=1)
    asked = Received(line(hub, "fr-1"), FP32).take_all([commit], SIZE)
    asked.look()
    asked.wait(0.1)
    assert (asked.absent.keys(), asked.faults) == ({"de-1"}, {})
    line(hub, "de-1").send(ArtifactClass.PSEUDO_GRADIENT, "x", one.data, round=1)
    asked.look()
    asked.wait(60)
    assert (asked.waiting, asked.faults) == (set(), {})


@pytest.mark.parametrize(
    "fault", [PolicyDeniedError("nothing of that class"), UsageError("no digest"), VerificationError("does not open")]
)
def test_whatever_a_sender_makes_the_gateway_say_is_a_verdict_and_not_the_judges_end(hub: Hub, fault):
    current = replace(hub.round(1), phase=RoundPhase.JUDGING)
    at = line(hub, "fr-1")

    def receive(artifact):
        if artifact.sender == "uy-1":
            raise fault
        return hub.receive("fr-1", artifact.digest)

    at.receive = receive
    peers(at).judge(current, made("fr-1"), Gates(), SIZE)
    said = {verdict.site: verdict.reason for verdict in hub.round(1).verdicts if verdict.judge == "fr-1"}
    assert said == {"de-1": "", "fr-1": "", "uy-1": "digest"}
    certificate = judged(hub).certificate
    assert certificate is not None
    all_of_them = replace(certificate, contributions=tuple(
        replace(certificate.contributions[0], site=site, digest=made(site).digest) for site in SITES))  # fmt: skip
    with pytest.raises(Tired):
        peers(at).gather(all_of_them, made("fr-1"), SIZE)


def owing(hub: Hub, site: str, now: list[float]) -> Peers:
    """A site that holds what another judge of the round could not have."""
    helper = Peers(line(hub, site), SIZE, sleep=lambda _: None, now_s=lambda: now[0])
    current = judged(hub)
    assert current.certificate is not None
    helper.gather(current.certificate, made(site), SIZE)
    helper.owe(current, current.certificate)
    return helper


def test_once_a_round_is_closed_nobody_waits_with_what_a_judge_could_not_have(hub: Hub):
    now = [0.0]
    helper = owing(hub, "fr-1", now)
    sent, closed = len(hub.artifacts), replace(hub.round(1), phase=RoundPhase.CLOSED)
    helper.pass_on(replace(closed, phase=RoundPhase.CERTIFIED))
    assert len(hub.artifacts) == sent
    helper.pass_on(closed)
    assert len(hub.artifacts) == sent + 1
    helper.pass_on(closed)
    assert len(hub.artifacts) == sent + 1


def test_a_judge_is_passed_what_it_could_not_have_rounds_later_too_unless_it_has_the_state(hub: Hub):
    for had in (False, True):
        helper = owing(hub, "fr-1", [0.0])
        following = Round(job=JOB, number=2, phase=RoundPhase.OPEN, expected=SITES)
        helper.owe(following, replace(hub.round(1).certificate, round=2, contributions=()))
        helper.forget()
        if had:
            hub.agree("de-1", "outer/1", "y")
        sent = len(hub.artifacts)
        helper.pass_on(following)
        assert len(hub.artifacts) == sent + (not had)


def test_a_site_that_lost_what_it_had_is_passed_it_after_a_while_whatever_its_sender_does_since(hub: Hub):
    hub.send("uy-1", ArtifactClass.PSEUDO_GRADIENT, "pseudo-gradient-1", made("uy-1").data, 1, ["de-1"])
    for last in (False, True):
        now = [0.0]
        helper = owing(hub, "fr-1", now)
        assert all(verdict.accept for verdict in hub.round(1).verdicts)
        current, sent = hub.round(1), len(hub.artifacts)
        now[0] = 9 * PASS_ON_S
        helper.pass_on(current, last=last)
        closed = replace(current, phase=RoundPhase.CLOSED, outer_digests={"fr-1": "y", "uy-1": "y"})
        helper.pass_on(closed, last=last)
        assert len(hub.artifacts) == sent + last, "it has a while from when the round is closed, if anybody stays"
        helper.forget()
        now[0] += PASS_ON_S
        hub.agreed["outer/1"] = closed.outer_digests
        following = Round(job=JOB, number=2, phase=RoundPhase.OPEN, expected=SITES)
        helper.pass_on(following)
        helper.pass_on(following)
        told = [one for one, _ in hub.artifacts[sent:]]
        assert [(one.sender, one.recipients, one.digest) for one in told] == [("fr-1", ("de-1",), made("uy-1").digest)]


def test_a_site_that_is_only_behind_is_passed_nothing_until_what_it_may_need_is_let_go(hub: Hub):
    hub.sites, now = (*SITES, "zz-1"), [0.0]
    at = line(hub, "fr-1")
    at.context = replace(at.context, peers=hub.sites)
    helper = Peers(at, SIZE, sleep=lambda _: None, now_s=lambda: now[0])
    judged(hub)
    current = replace(
        hub.round(1), expected=hub.sites, phase=RoundPhase.CLOSED, outer_digests=dict.fromkeys(SITES, "y")
    )
    helper.gather(current.certificate, made("fr-1"), SIZE)
    helper.owe(current, current.certificate)
    hub.agreed["outer/1"], sent, told = current.outer_digests, len(hub.artifacts), []
    for number in range(1, 2 + OWED_ROUNDS):
        later = replace(current, number=number, outer_digests={})
        now[0] += 9 * PASS_ON_S
        helper.pass_on(current if number == 1 else later)
        told.append(len(hub.artifacts) - sent)
        if number > 1:
            helper.owe(later, replace(current.certificate, round=number, contributions=()))
    assert told == [0, 0, 0, 2, 2]


def test_where_all_have_the_new_state_nothing_is_held_for_anybody(hub: Hub):
    helper = owing(hub, "fr-1", [0.0])
    sent, closed = len(hub.artifacts), replace(hub.round(1), phase=RoundPhase.CLOSED)
    helper.pass_on(replace(closed, outer_digests=dict.fromkeys(SITES, "y")), last=True)
    helper.forget()
    assert len(hub.artifacts) == sent
    assert not [site for site in SITES if made(site).digest in helper._received]


def test_the_only_site_that_has_it_is_the_first_to_pass_it_on():
    hub, now = Hub(SITES), [0.0]
    hub.agreed["outer/0"] = dict.fromkeys(SITES, "x")
    for site in SITES:
        at, one = line(hub, site), made(site)
        to = ["uy-1"] if site == "fr-1" else None
        at.send(ArtifactClass.PSEUDO_GRADIENT, "pseudo-gradient-1", one.data, round=1, recipients=to)
        at.commit(1, tokens=10, steps=1, digest=one.digest, norm=one.norm, loss=one.loss)
    helper = owing(hub, "uy-1", now)
    sent, now[0] = len(hub.artifacts), PASS_ON_S
    helper.pass_on(hub.round(1))
    assert len(hub.artifacts) == sent + 1, "sites without it and its sender have no turn"


def test_what_somebody_sends_a_site_does_not_keep_it_from_joining():
    hub = Hub(SITES)
    hub.agreed["outer/0"] = dict.fromkeys(SITES[:2], "x")
    hub.rounds[1] = Round(job=JOB, number=1, phase=RoundPhase.CLOSED, expected=SITES[:2])
    hub._move = lambda number: None  # type: ignore[method-assign]
    line(hub, "fr-1").send(ArtifactClass.OUTER_STATE, "junk", b"1", round=0, recipients=["uy-1"])
    params, at = PretrainConfig.of(PARAMS), line(hub, "uy-1")
    assert Joining(at, peers(at), RoundBook(at.store(), JOB), params, SIZE).late()
    hub.agreed["outer/0"]["uy-1"] = "x"
    assert not Joining(at, peers(at), RoundBook(at.store(), JOB), params, SIZE).late()


def test_a_site_whose_round_was_closed_without_it_computes_again_before_it_gives_up(hub: Hub):
    right, wrong = np.full(SIZE, 2, np.float32), np.full(SIZE, 3, np.float32)
    holds, at = vector_digest(right), line(hub, "fr-1")
    current = replace(judged(hub), phase=RoundPhase.CLOSED, outer_digests={"de-1": holds, "uy-1": holds})
    mine = OuterState(
        round=1, digest=vector_digest(wrong), outer=wrong, momentum=wrong, position=0, tokens=0, moments=None
    )
    settling = Settling(at, peers(at), SIZE)
    found = settling.alone(current, holds, mine, lambda number: (right, right))
    assert (found.digest, found.round) == (holds, 1)
    np.testing.assert_array_equal(found.momentum, right)
    with pytest.raises(VerificationError, match="but de-1 has"):
        settling.alone(current, holds, mine, lambda number: (wrong, right))


class Clock:
    """A clock that every look moves by 10 ms, and waiting by as long as it lasts."""

    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        self.s += 0.01
        return self.s


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    wait = Asked.wait

    def waited(asked: Asked, timeout_s: float) -> None:
        wait(asked, 0.01)
        clock.s += timeout_s

    monkeypatch.setattr(Asked, "wait", waited)
    return clock


def judge_at(hub: Hub, clock: Clock, gates: Gates, at: Line) -> list[tuple[float, dict[str, str]]]:
    """When fr-1 gives which verdicts, where the round takes them for 60 seconds."""
    told: list[tuple[float, dict[str, str]]] = []
    at.verdicts = lambda number, given: told.append((clock.s, {one["site"]: one["reason"] for one in given}))
    current = replace(hub.rounds[1], phase=RoundPhase.JUDGING, deadline_ms=60_000)
    hub.rounds[1] = current
    Peers(at, SIZE, sleep=lambda _: None, now_s=clock, wall_s=lambda: clock.s).judge(current, made("fr-1"), gates, SIZE)
    return told


def test_where_verdicts_rest_on_each_other_half_of_the_time_is_left_to_judge_in(hub: Hub, clock: Clock):
    hub.artifacts = [one for one in hub.artifacts if one[0].sender != "uy-1"]
    gates = Gates(rule=ScreenRule(loss_rise=0.15), probe=lambda gradient: 1.0)
    ((at_s, said),) = judge_at(hub, clock, gates, line(hub, "fr-1"))
    assert said == {"de-1": "", "fr-1": "", "uy-1": "missing"}
    assert 29 < at_s < 33


def test_a_server_that_was_away_gives_the_whole_time_anew(hub: Hub, clock: Clock):
    held, hub.artifacts = hub.artifacts, []
    at, inbox = line(hub, "fr-1"), line(hub, "fr-1").inbox

    def away(number: int | None = None):
        if clock.s < 70:
            clock.s = 70.0  # the call outlasts the absence
            hub.rounds[1] = replace(hub.rounds[1], deadline_ms=130_000)
        elif clock.s > 72:
            hub.artifacts = held  # what waited at the peers' gateways is announced
        return inbox(number)

    at.inbox = away
    ((at_s, said),) = judge_at(hub, clock, Gates(), at)
    assert said == dict.fromkeys(SITES, "")
    assert 72 < at_s < 80
