"""Legs at several sites going through rounds together: agreement, crashes, latecomers, liars."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import numpy as np
import pytest

from consortium.domain.codec import to_json
from consortium.domain.pretraining import PretrainConfig
from consortium.domain.protocol import LegContext
from consortium.domain.training import RoundPhase
from consortium.errors import ConflictError, VerificationError
from consortium.storage.objects import ObjectStore
from consortium.train.inner import InnerWorker
from consortium.train.keep import Keep, Origin, OuterState
from consortium.train.leg import FederatedLeg
from consortium.train.outer import Vector
from consortium.train.tokens import open_sequences
from tests.train.conftest import VOCAB
from tests.train.hub import JOB, Hub, Line

pytestmark = pytest.mark.integration
SITES = ("de-1", "fr-1", "uy-1")


class CrashError(Exception):
    """The process died here."""


class NoMetrics:
    def log(self, values: Any, step: int) -> None:
        assert all(np.isfinite(value) for value in values.values())


class CrashingLine(Line):
    """A line whose process dies just before or after a call, once."""

    crash: tuple[str, int, str] | None = None

    def _maybe(self, call: str, number: int, when: str) -> None:
        if self.crash == (call, number, when):
            raise CrashError

    def commit(self, round: int, **values: Any) -> None:
        self._maybe("commit", round, "before")
        super().commit(round, **values)
        self._maybe("commit", round, "after")

    def send(self, artifact_class: Any, name: str, data: bytes, *, round: int = 0, **more: Any) -> Any:
        self._maybe("send", round, "before")
        sent = super().send(artifact_class, name, data, round=round, **more)
        self._maybe("send", round, "after")
        return sent

    def verdicts(self, round: int, verdicts: Any) -> None:
        self._maybe("verdicts", round, "before")
        super().verdicts(round, verdicts)
        self._maybe("verdicts", round, "after")

    def agree(self, topic: str, digest: str) -> None:
        self._maybe(topic, 0, "before")
        super().agree(topic, digest)
        self._maybe(topic, 0, "after")

    asked, stop_at = 0, 0

    def stopping(self) -> bool:
        """Told to stop when it asks for the `stop_at`-th time."""
        self.asked += 1
        return self.asked == self.stop_at


@dataclass
class Site:
    hub: Hub
    context: LegContext
    store: ObjectStore
    crash: tuple[str, int, str] | None = None
    stop_at: int = 0
    stopped: int = 0
    spoil: float = 1.0
    final: OuterState | None = None
    fault: BaseException | None = None

    def live(self) -> None:
        """Run the leg in this thread, with a fresh process's memory; after a crash, once more."""
        try:
            try:
                self._run(self.crash)
            except CrashError:
                self._run(None)
            while self.final is None:
                self.stopped, self.stop_at = self.stopped + 1, 0
                self._run(None)
        except BaseException as fault:
            self.fault = fault

    def _run(self, crash: tuple[str, int, str] | None) -> None:
        line = CrashingLine(self.hub, self.context, self.store)
        line.crash, line.stop_at = crash, self.stop_at
        params = PretrainConfig.of(self.context.params)
        text = open_sequences(self.store, self.context.inputs, params.model.context, VOCAB)
        worker = SpoilingWorker(params, VOCAB, text, self.context.site)
        worker.spoil = self.spoil
        origin = Origin(
            model=to_json(params.model),
            vocab_size=VOCAB,
            tokenizer_digest="",
            names=worker.layout.names,
            shapes=worker.layout.shapes,
            optimizer=worker.covered,
        )
        keep = Keep(self.store, JOB)
        leg = FederatedLeg(line, keep, worker, params, origin, NoMetrics(), sleep=lambda _: _nap())
        self.final = leg.run()


class SpoilingWorker(InnerWorker):
    """Scales what it sends: 1 is honest."""

    spoil = 1.0
    begun: Vector

    def run(self, start: Vector | None, **where: int) -> Any:
        self.begun = self.begun if start is None else start
        done = super().run(start, **where)
        if self.spoil == 1.0 or not done.local.size:
            return done
        return replace(done, local=self.begun - (self.begun - done.local) * np.float32(self.spoil))


def _nap() -> None:
    threading.Event().wait(0.005)


def together(sites: list[Site]) -> None:
    threads = [threading.Thread(target=site.live, daemon=True) for site in sites]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads), "the legs wait for each other"


def federation(leg: Any, sites: tuple[str, ...] = SITES, **changes: Any) -> list[Site]:
    hub = Hub(sites)
    return [Site(hub, *leg(site, sites, **changes)) for site in sites]


def digests(sites: list[Site]) -> set[str]:
    for site in sites:
        if site.fault is not None:
            raise site.fault
    return {site.final.digest for site in sites if site.final}


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, str]:
    """Digests of the outer states of the first run, against which disturbed ones are held."""
    return {}


def test_three_sites_end_with_one_outer_state_that_was_learned(leg):
    sites = federation(leg)
    together(sites)
    assert len(digests(sites)) == 1
    hub = sites[0].hub
    assert [hub.rounds[k].phase for k in (1, 2, 3)] == [RoundPhase.CLOSED] * 3
    losses = [float.fromhex(commit.loss) for k in (1, 3) for commit in hub.rounds[k].commits]
    assert sum(losses[3:]) < sum(losses[:3])
    assert all(len(hub.rounds[k].certificate.contributions) == 3 for k in (1, 2, 3))
    assert Keep(sites[0].store, JOB).rounds() == [0, 1, 2, 3]


def test_one_site_alone_needs_no_peer(leg):
    sites = federation(leg, ("fr-1",))
    together(sites)
    assert len(digests(sites)) == 1
    assert not sites[0].hub.artifacts


@pytest.mark.parametrize(
    "crash",
    [
        ("outer/0", 0, "before"),
        ("outer/0", 0, "after"),
        ("commit", 1, "before"),
        ("commit", 2, "after"),
        ("send", 2, "before"),
        ("send", 2, "after"),
        ("verdicts", 2, "before"),
        ("verdicts", 2, "after"),
        ("outer/2", 0, "before"),
        ("outer/3", 0, "after"),
    ],
)
def test_a_crash_anywhere_repeats_nothing_and_changes_no_bit(leg, undisturbed, crash):
    if not undisturbed:
        calm = federation(leg)
        together(calm)
        undisturbed["digest"] = digests(calm).pop()
    sites = federation(leg)
    for site in sites:
        site.crash = crash
    together(sites)
    assert digests(sites) == {undisturbed["digest"]}
    seen = sites[0].hub.commits_seen
    assert len(seen) == len({(site, number) for site, number, _ in seen}) == 9
    assert len({site.final.position for site in sites}) == 1
    assert sites[0].final.position == 3 * 4 * 4


def test_nothing_of_a_round_can_be_seen_while_it_takes_commits(leg):
    sites = federation(leg)
    hub, send, early = sites[0].hub, Hub.send, []

    def noted(self: Hub, site: str, cls: str, name: str, data: bytes, number: int, recipients: Any) -> Any:
        if number and self.round(number).phase is RoundPhase.OPEN:
            early.append((site, name))
        return send(self, site, cls, name, data, number, recipients)

    hub.send = MethodType(noted, hub)  # type: ignore[method-assign]
    together(sites)
    assert not early
    assert len([one for one, _ in hub.artifacts if one.round]) == 3 * 3


class CopyingLine(CrashingLine):
    """Commits to what it can see of another, where it can see any, and says what it could not."""

    def commit(self, round: int, **values: Any) -> None:
        others = [one for one in self.hub.rounds[round].commits if one.site != self.site]
        assert others, "the others are ahead"
        assert self.round(round).commits == ()
        with pytest.raises(ConflictError, match=f"{others[0].site} committed that"):
            super().commit(round, **values | {"digest": others[0].digest, "norm": others[0].norm})
        super().commit(round, **values)


def test_a_site_that_commits_last_can_neither_see_nor_take_what_another_committed(leg):
    sites = federation(leg, ("de-1", "fr-1"))
    hub = sites[0].hub
    with pytest.raises(CrashError):
        sites[0]._run(("commit", 1, "after"))
    line = CopyingLine(hub, sites[1].context, sites[1].store)
    line.commit(1, tokens=10, steps=1, digest="sha256:own", norm="0x1p+0", loss="0x1p+0")
    assert [one.site for one in hub.rounds[1].commits] == ["de-1", "fr-1"]


@pytest.mark.parametrize("asked", [1, 2, 3, 4, 6, 8])
def test_legs_that_are_told_to_stop_go_on_where_they_were_and_change_no_bit(leg, undisturbed, asked):
    if not undisturbed:
        calm = federation(leg)
        together(calm)
        undisturbed["digest"] = digests(calm).pop()
    sites = federation(leg)
    for site in sites:
        site.stop_at = asked
    together(sites)
    assert digests(sites) == {undisturbed["digest"]}
    assert {site.stopped for site in sites} == {1}
    assert {site.final.position for site in sites} == {3 * 4 * 4}
    for site in sites:
        assert not [key for key in site.store.list(f"jobs/{JOB}/rounds/") if key.endswith("inner.json")]


def test_a_leg_that_stops_in_mid_round_keeps_the_steps_it_did(leg):
    (site,) = federation(leg, ("fr-1",))
    site.stop_at = 1
    together([site])
    assert digests([site])
    told = [said for said in site.hub.progress if said["phase"] == "train" and said["round"] == 1]
    assert [(said["step"], said["kept"]) for said in told] == [(0, "0.0"), (1, "0.1"), (1, "0.1")]
    straight = federation(leg, ("fr-1",))
    together(straight)
    assert digests([site]) == digests(straight)
    commits = [one.hub.rounds[1].commits[0] for one in (site, straight[0])]
    assert commits[0].tokens == commits[1].tokens == 4 * 4 * 16
    assert abs(float.fromhex(commits[0].loss) - float.fromhex(commits[1].loss)) < 1e-9
    kept = [key for key in site.store.list(f"jobs/{JOB}/rounds/1/") if key.endswith(".f32")]
    assert len(kept) == 3, "the steps kept in mid-round are dropped once the contribution is"


def test_damaged_inner_steps_are_done_again(leg, capsys):
    (site,) = federation(leg, ("fr-1",))
    site.stop_at, whole = 1, site._run
    whole(None)
    assert site.final is None
    key = next(key for key in site.store.list(f"jobs/{JOB}/rounds/1/") if key.endswith(".f32"))
    site.store.put(key, b"\0" * 16)
    site.stop_at = 0
    together([site])
    assert "damaged and done again" in capsys.readouterr().err
    straight = federation(leg, ("fr-1",))
    together(straight)
    assert digests([site]) == digests(straight)


def test_a_contribution_a_hundred_times_too_large_is_refused_by_all_and_changes_nothing(leg):
    sites = federation(leg)
    sites[2].spoil = 100.0
    together(sites)
    assert len(digests(sites)) == 1
    for number in (1, 2, 3):
        current = sites[0].hub.rounds[number]
        assert [part.site for part in current.certificate.contributions] == ["de-1", "fr-1"]
        assert {v.reason for v in current.verdicts if v.site == "uy-1"} == {"outlier"}


def test_a_site_lost_before_its_commit_comes_back_by_certificates(leg):
    sites = federation(leg)
    hub = sites[0].hub
    together([replace_site(site, rounds=1) for site in sites])
    hub.lose("uy-1")
    together(sites[:2])
    assert len(digests(sites[:2])) == 1
    together(sites[2:])
    assert digests(sites) == {sites[0].final.digest}
    assert [len(hub.rounds[k].commits) for k in (1, 2, 3)] == [3, 2, 2]
    assert sites[2].final.position == 4 * 4


def replace_site(site: Site, rounds: int) -> Site:
    params = {**site.context.params, "outer": {**site.context.params["outer"], "rounds": rounds}}
    return Site(site.hub, replace(site.context, params=params), site.store)


def test_a_second_certificate_for_a_round_is_refused(leg):
    (site,) = federation(leg, ("fr-1",))
    together([replace_site(site, rounds=1)])
    certificate = site.hub.rounds[1].certificate
    keep = Keep(site.store, JOB)
    keep.pin_certificate(replace(certificate, signature="another signature of the same content"))
    with pytest.raises(ConflictError, match="second certificate"):
        keep.pin_certificate(replace(certificate, contributions=()))


def test_a_forged_certificate_stops_the_leg(leg):
    sites = federation(leg)

    class ForgingHub(Hub):
        def round(self, number: int) -> Any:
            current = super().round(number)
            if current.certificate is None:
                return current
            return replace(
                current, certificate=replace(current.certificate, contributions=current.certificate.contributions[:1])
            )

    forging = ForgingHub(SITES)
    for site in sites:
        site.hub = forging
    together(sites)
    for site in sites:
        assert isinstance(site.fault, VerificationError)
        assert "does not follow from the verdicts" in str(site.fault)


def test_a_damaged_outer_state_is_left_for_the_one_before(leg, capsys):
    (site,) = federation(leg, ("fr-1",))
    together([site])
    assert site.fault is None
    keep, size = Keep(site.store, JOB), len(site.final.outer)
    key = next(k for k in site.store.list(f"jobs/{JOB}/outer/3/") if site.final.digest[7:] in k)
    site.store.put(key, b"\0" * 4 * size)
    assert keep.newest(size).round == 2
    assert "outer state 3 is damaged" in capsys.readouterr().err
    again = Site(site.hub, site.context, site.store)
    together([again])
    assert digests([again]) == {site.final.digest}
