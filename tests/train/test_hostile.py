"""Sites that lie, break or withhold, against honest legs: what they do costs themselves and nobody else."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from consortium.domain.codec import to_json
from consortium.domain.data import ArtifactClass
from consortium.domain.pretraining import PretrainConfig
from consortium.domain.protocol import LegContext, StoreAccess
from consortium.domain.screening import ScreenRule
from consortium.domain.training import RoundPhase
from consortium.keys.canonical import digest as digest_of
from consortium.storage.objects import ObjectStore
from consortium.train import parcels
from consortium.train.keep import Keep, Origin, OuterState
from consortium.train.leg import FederatedLeg
from consortium.train.outer import Moments, Vector, to_bytes
from consortium.train.peers import INITIAL
from consortium.train.schedule import Pace
from consortium.train.within import InnerResult
from tests.builders import new_id
from tests.s3 import S3
from tests.train.conftest import PARAMS
from tests.train.hub import JOB, Hub, Line

pytestmark = pytest.mark.integration
SIZE = 64
STEPS, BATCH, CONTEXT = 4, 4, 16


class Pull:
    """Inner steps without a model: momentum towards a point of the site's own."""

    def __init__(self, site: str) -> None:
        self.target = np.random.default_rng(sum(site.encode())).normal(size=SIZE).astype(np.float32)
        self.speed = np.zeros(SIZE, dtype=np.float32)
        self.steps = 0
        self.broken: set[int] = set()
        """Steps, over all rounds, that come to NaN."""
        self.read: list[tuple[int, int]] = []
        """Position and number of sequences of each call."""

    def initial(self) -> Vector:
        return np.zeros(SIZE, dtype=np.float32)

    def run(
        self, start: Vector | None, *, position: int, step: int, count: int, pace: Pace | None = None, take: bool = True
    ) -> InnerResult:
        if start is not None:
            self.local, self.done = start.copy(), 0
        self.read.append((position, count * BATCH))
        for at in range(step, step + count):
            self.speed = np.float32(0.5) * self.speed + (self.local - self.target)
            if at in self.broken:
                self.speed = self.speed * np.float32(np.nan)
            self.local = self.local - np.float32(0.1) * self.speed
        self.steps, self.done = self.steps + count, self.done + count
        return InnerResult(
            local=self.local.copy(),
            loss=float(np.abs(self.local - self.target).mean()),
            tokens=self.done * BATCH * CONTEXT,
            position=position + count * BATCH,
        )

    def parameters(self) -> Vector:
        return self.local.copy()

    def probe(self, outer: Vector, *, position: int, count: int) -> float:
        return float(np.abs(outer - self.target).mean())

    def moments(self) -> Moments | None:
        return Moments({"speed": self.speed.copy()}, self.steps) if self.steps else None

    def restore(self, moments: Moments) -> None:
        self.speed, self.steps = moments.vectors["speed"].copy(), moments.steps


class NoMetrics:
    def log(self, values: Any, step: int) -> None:
        """Nobody looks."""


@dataclass
class Site:
    """An honest leg."""

    line: Line
    inner: Pull
    final: OuterState | None = None
    fault: BaseException | None = None
    thread: threading.Thread | None = field(default=None, repr=False)

    @property
    def keep(self) -> Keep:
        return Keep(self.line.store(), JOB)

    def start(self) -> Site:
        self.thread = threading.Thread(target=self._live, daemon=True)
        self.thread.start()
        return self

    def _live(self) -> None:
        try:
            params = PretrainConfig.of(self.line.context.params)
            origin = Origin(model={}, vocab_size=64, tokenizer_digest="", names=("w",), shapes=((SIZE,),))
            leg = FederatedLeg(self.line, self.keep, self.inner, params, origin, NoMetrics(), sleep=_nap)
            self.final = leg.run()
        except BaseException as fault:
            self.fault = fault


def _nap(_: float) -> None:
    threading.Event().wait(0.005)


def wait(sites: list[Site]) -> None:
    for site in sites:
        assert site.thread is not None
        site.thread.join(timeout=60)
        assert not site.thread.is_alive(), f"{site.line.site} waits for ever"
        if site.fault is not None:
            raise site.fault
    assert len({site.final.digest for site in sites if site.final}) == 1


@pytest.fixture
def line(s3: S3) -> Callable[..., Line]:
    """A site's line to a hub, with a store of its own."""

    def make(hub: Hub, site: str, kind: type[Line] = Line, **outer: Any) -> Line:
        store: ObjectStore = s3.fresh()
        keys = {"access_key": s3.access_key, "secret_key": s3.secret_key}
        access = StoreAccess(endpoint=s3.endpoint, bucket=store.bucket, prefix="jobs/", **keys)
        context = LegContext(
            job=JOB,
            job_kind="pretrain",
            job_name="test",
            attempt=new_id("att", 1),
            leg=new_id("leg", secrets.randbits(30)),
            epoch="1.1",
            site=site,
            partner=site[:2],
            peers=hub.sites,
            params={**PARAMS, "outer": {**PARAMS["outer"], **outer}},
            inputs=(),
            gpus=1,
            gpus_per_worker=1,
            gpu_resource="sim_gpu",
            store=access,
        )
        return kind(hub, context, store)

    return make


def eventually(look: Callable[[], Any], *, pause_s: float = 0.005) -> Any:
    """Return what `look` comes to once it is something."""
    for _ in range(4000):
        if found := look():
            return found
        threading.Event().wait(pause_s)
    raise AssertionError("it never came to anything")


# -- a liar's state to begin with -------------------------------------------------------------------------------------


def test_a_state_that_another_than_the_first_site_publishes_is_nobodys_beginning(line):
    hub = Hub(("de-1", "fr-1", "uy-1"))
    liar = line(hub, "uy-1")
    evil = to_bytes(np.full(SIZE, 666, dtype=np.float32))
    liar.send(ArtifactClass.OUTER_STATE, INITIAL, evil)
    liar.agree("outer/0", digest_of(evil))
    hub.lose("uy-1")
    sites = [Site(line(hub, site), Pull(site)) for site in ("de-1", "fr-1")]
    wait([site.start() for site in sites])
    for site in sites:
        assert not site.keep.measured(0)[1].any()
    assert len(hub.rounds[3].certificate.contributions) == 2


# -- what is sent to some, and what is large --------------------------------------------------------------------------


class Withholding(Line):
    """Lets one judge have what it contributes, and not the other."""

    def send(self, artifact_class: ArtifactClass | str, name: str, data: bytes, **more: Any) -> Any:
        return super().send(artifact_class, name, data, **more | {"recipients": ["fr-1"]})


@pytest.mark.parametrize("delay", [0, 2])
def test_a_site_that_withholds_its_contribution_from_one_judge_stalls_nobody(line, monkeypatch, delay):
    monkeypatch.setattr("consortium.train.peers.PASS_ON_S", 0.05)
    monkeypatch.setattr("consortium.train.peers.ABSENT_S", 0.5)
    hub = Hub(("de-1", "fr-1", "uy-1"))
    sites = [Site(line(hub, s, Withholding if s == "uy-1" else Line, delay=delay), Pull(s)) for s in hub.sites]
    wait([site.start() for site in sites])
    for number in (1, 2, 3):
        current = hub.rounds[number]
        assert len(current.certificate.contributions) == 3, "two of three had it"
        assert {v.reason for v in current.verdicts if (v.judge, v.site) == ("de-1", "uy-1")} == {"missing"}


def test_vectors_that_cross_in_parts_train_the_same(line, monkeypatch):
    def trained() -> tuple[Hub, str]:
        hub = Hub(("de-1", "fr-1"))
        sites = [Site(line(hub, site), Pull(site)) for site in hub.sites]
        wait([site.start() for site in sites])
        return hub, sites[0].final.digest

    _, whole = trained()
    monkeypatch.setitem(parcels.send.__kwdefaults__, "part_bytes", 100)
    monkeypatch.setattr(parcels, "PART_BYTES", 100)
    hub, cut = trained()
    assert cut == whole
    assert len(hub.artifacts) == 3 * (1 + 2 * 3), "the initial state, and two contributions in each of three rounds"


class Refusing(Hub):
    """Nobody accepts anything in round 1."""

    def verdicts(self, number: int, verdicts: Any) -> None:
        said = [replace(one, accept=False, reason="cosine") for one in verdicts] if number == 1 else verdicts
        super().verdicts(number, said)


def test_steps_that_lead_on_from_a_refused_round_are_not_taken_up_again(line, monkeypatch):
    def trained(keep_s: int) -> str:
        monkeypatch.setattr("consortium.train.within.KEEP_S", keep_s)
        hub = Refusing(("de-1", "fr-1"))
        sites = [Site(line(hub, site, delay=2), Pull(site)) for site in hub.sites]
        wait([site.start() for site in sites])
        assert not hub.rounds[1].certificate.contributions
        assert sites[0].final.digest == sites[1].final.digest
        return sites[0].final.digest

    assert trained(0) == trained(600), "whether they were kept on the way changes nothing"


class Condemning(Hub):
    """In round 1 all judges refuse uy-1 for what it sent."""

    def verdicts(self, number: int, verdicts: Any) -> None:
        bad = (1, "uy-1")
        said = [replace(one, accept=False, reason="cosine") if (number, one.site) == bad else one for one in verdicts]
        super().verdicts(number, said)


def test_nobody_waits_for_a_site_in_quarantine_and_it_follows(line):
    rule = ScreenRule(quarantine=1)
    hub = Condemning(("de-1", "fr-1", "uy-1"), screen=rule)
    sites = [Site(line(hub, site, screen=to_json(rule)), Pull(site)) for site in hub.sites]
    wait([site.start() for site in sites])
    counted = [[part.site for part in hub.rounds[k].certificate.contributions] for k in (1, 2, 3)]
    assert counted == [["de-1", "fr-1"]] * 3
    assert {one.site for one in hub.rounds[2].verdicts} == {"de-1", "fr-1"}


# -- a site's own breakdown -------------------------------------------------------------------------------------------


def test_one_step_that_comes_to_nan_costs_its_site_a_round_and_not_its_part_for_good(line, capsys):
    hub = Hub(("de-1", "fr-1", "uy-1"))
    sites = [Site(line(hub, site), Pull(site)) for site in hub.sites]
    sites[1].inner.broken = {STEPS + 2}
    wait([site.start() for site in sites])
    counted = [{part.site for part in hub.rounds[k].certificate.contributions} for k in (1, 2, 3)]
    assert counted == [{"de-1", "fr-1", "uy-1"}, {"de-1", "uy-1"}, {"de-1", "fr-1", "uy-1"}]
    assert "not finite" in capsys.readouterr().err
    kept = sites[1].keep
    before, after = kept.outer(1, SIZE), kept.outer(2, SIZE)
    assert after.moments.steps == before.moments.steps == STEPS
    np.testing.assert_array_equal(after.moments.vectors["speed"], before.moments.vectors["speed"])
    assert after.position == 2 * STEPS * BATCH, "the text that broke it is not read again"


def test_a_first_round_that_comes_to_nan_leaves_the_optimiser_as_new(line):
    hub = Hub(("de-1", "fr-1"))
    sites = [Site(line(hub, site), Pull(site)) for site in hub.sites]
    sites[1].inner.broken = {0}
    wait([site.start() for site in sites])
    assert len(hub.rounds[2].certificate.contributions) == 2
    assert sites[1].keep.outer(2, SIZE).moments.steps == STEPS


class LateLine(Line):
    """Commits to round 2 once the others went on without."""

    def commit(self, round: int, **values: Any) -> None:
        if round == 2:
            self.hub.lose(self.site)
            eventually(lambda: (self.hub.round(2) if 2 in self.hub.rounds else None) and self._fixed())
            self.hub.lost.discard(self.site)
        super().commit(round, **values)

    def _fixed(self) -> bool:
        return self.hub.rounds[2].phase is not RoundPhase.OPEN


def test_steps_whose_commit_comes_too_late_are_done_again_from_the_optimiser_before_them(line):
    hub = Hub(("de-1", "fr-1"))
    sites = [Site(line(hub, "de-1"), Pull("de-1")), Site(line(hub, "fr-1", LateLine), Pull("fr-1"))]
    wait([site.start() for site in sites])
    assert [len(hub.rounds[k].commits) for k in (1, 2, 3)] == [2, 1, 2]
    kept = sites[1].keep
    before, after = kept.outer(1, SIZE), kept.outer(2, SIZE)
    assert (after.position, after.moments.steps) == (before.position, before.moments.steps)
    np.testing.assert_array_equal(after.moments.vectors["speed"], before.moments.vectors["speed"])
    assert sites[1].final.moments.steps == 2 * STEPS
