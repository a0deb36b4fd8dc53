"""Three languages are not three attackers: what honest sites send passes every gate, what a liar sends does not.

Each site trains on the bytes of its own language. The judges, the certificate rule and the outer step are the real
ones; what is left out is the network between them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest

from consortium.data.sample import generate
from consortium.domain.pretraining import PretrainConfig
from consortium.domain.screening import ScreenRule
from consortium.domain.training import Certificate, Commit, Round, RoundPhase, Standing, Verdict
from consortium.train.combine import combine
from consortium.train.inner import InnerWorker
from consortium.train.order import Sequences
from consortium.train.outer import Vector, cosine_of, nesterov, norm_of, to_bytes, vector_digest
from consortium.train.rounds import certify, first_standing, standing_after
from consortium.train.screen import Gates, screen

pytestmark = pytest.mark.integration

LANGUAGES = {"de-1": "de", "fr-1": "fr", "uy-1": "es"}
CONTEXT, VOCAB, ROUNDS, STEPS = 32, 256, 5, 15
GUARDED = ScreenRule(clip=2.0, cosine=0.0, loss_rise=0.15, loss_sequences=16, quarantine=3)
"""As configs/outer/guarded.yaml."""


def params() -> PretrainConfig:
    return PretrainConfig.of({
        "model": {"dim": 32, "layers": 2, "heads": 2, "context": CONTEXT},
        "data": {"batch_size": 8},
        "optim": {"lr": 0.005, "warmup_steps": 10},
        "outer": {"rounds": 2 * ROUNDS, "inner_steps": STEPS},
        "seed": 1,
    })  # fmt: skip


def text(language: str) -> Sequences:
    rows = generate(language, 200).rows
    data = b"".join(row["text"].encode() + b"\0" for row in rows)
    return Sequences([np.frombuffer(data, dtype=np.uint8).astype(np.uint16)], CONTEXT)


@dataclass
class Run:
    """Three sites through rounds; `liar` sends `factor` times its pseudo-gradient from round 3 on; nothing at 0."""

    rule: ScreenRule
    factor: float = 1.0
    liar: str = "uy-1"
    certificates: list[Certificate] = field(default_factory=list)
    reasons: list[dict[str, set[str]]] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def go(self) -> Run:
        sites = {site: InnerWorker(params(), VOCAB, text(language), site) for site, language in LANGUAGES.items()}
        outer = sites["de-1"].initial()
        momentum = np.zeros_like(outer)
        standing, position = first_standing(self.rule, 1), 0
        for number in range(1, ROUNDS + 1):
            sent: dict[str, Vector] = {}
            for site, worker in sites.items():
                done = worker.run(outer, position=position, step=(number - 1) * STEPS, count=STEPS)
                lie = self.factor if site == self.liar and number >= 3 else 1.0
                sent[site] = np.subtract(outer, done.local) * np.float32(lie)
                if number > 1:
                    self.cosines.append(cosine_of(sent[site], momentum))
            position = done.position
            sent = {site: vector for site, vector in sent.items() if vector.any()}
            commits = tuple(_commit(site, number, vector) for site, vector in sent.items())
            verdicts: list[Verdict] = []
            for judge, worker in sites.items():
                gates = Gates(
                    rule=self.rule,
                    standing=standing,
                    momentum=momentum,
                    probe=partial(self._loss, worker, outer, position),
                )
                wire = {site: to_bytes(vector) for site, vector in sent.items()}
                judged = screen(commits, wire, {}, len(outer), gates)
                verdicts += [Verdict(job="j", round=number, judge=judge, **one.as_verdict()) for one in judged]
            certificate = certify("j", number, "", commits, verdicts, standing=standing)
            standing = self._note(certificate, commits, verdicts)
            mean = combine(certificate.contributions, sent, len(outer), self.rule)
            outer, momentum = nesterov(outer, momentum, mean, lr=0.7, momentum_decay=0.9)
            self.losses.append(float(np.mean([w.probe(outer, position=position, count=64) for w in sites.values()])))
        return self

    def accepted(self, number: int) -> list[str]:
        return [part.site for part in self.certificates[number - 1].contributions]

    def _loss(self, worker: InnerWorker, outer: Vector, position: int, gradient: Vector) -> float:
        return worker.probe(np.subtract(outer, gradient), position=position, count=self.rule.loss_sequences)

    def _note(self, certificate: Certificate, commits: tuple[Commit, ...], verdicts: list[Verdict]) -> Standing | None:
        self.certificates.append(certificate)
        self.reasons.append({site: {v.reason for v in verdicts if v.site == site} for site in LANGUAGES})
        return standing_after(
            Round(job="j", number=certificate.round, phase=RoundPhase.CERTIFIED, expected=tuple(LANGUAGES),
                  commits=commits, verdicts=tuple(verdicts), certificate=certificate)
        )  # fmt: skip


def _commit(site: str, number: int, vector: Vector) -> Commit:
    return Commit(job="j", round=number, site=site, tokens=STEPS * 8 * CONTEXT, steps=STEPS,
                  digest=vector_digest(vector), norm=norm_of(vector).hex(), loss="0x0p+0")  # fmt: skip


@pytest.fixture(scope="module")
def honest() -> Run:
    return Run(GUARDED).go()


@pytest.fixture(scope="module")
def absent() -> Run:
    """The third site commits nothing from round 3 on."""
    return Run(GUARDED, factor=0.0).go()


def test_honest_sites_with_three_languages_pass_every_gate(honest: Run):
    assert honest.reasons == [{site: {""} for site in LANGUAGES}] * ROUNDS
    assert [honest.accepted(k) for k in range(1, ROUNDS + 1)] == [sorted(LANGUAGES)] * ROUNDS
    assert min(honest.cosines) > 0.05, "the gate stands at zero, and nobody honest is near it"
    clips = [float.fromhex(part.clip) for made in honest.certificates for part in made.contributions]
    assert min(clips) == 1.0, "nobody honest is scaled down"
    assert honest.losses[-1] < honest.losses[0] - 0.1


@pytest.mark.parametrize(("factor", "reason"), [(-1.0, "cosine"), (100.0, "outlier")])
def test_a_liar_is_refused_in_the_round_it_begins_and_costs_nothing_more_than_its_text(
    absent: Run, factor: float, reason: str
):
    run = Run(GUARDED, factor=factor).go()
    assert [run.accepted(k) for k in (1, 2)] == [sorted(LANGUAGES)] * 2
    for number in range(3, ROUNDS + 1):
        assert run.accepted(number) == ["de-1", "fr-1"]
        assert run.reasons[number - 1]["uy-1"] == {reason}
        assert run.reasons[number - 1]["de-1"] == run.reasons[number - 1]["fr-1"] == {""}
    assert run.losses == absent.losses, "to the last bit as without that site"
    last = run.certificates[-1].standing
    assert last is not None
    assert dict(last.refused) == {"uy-1": ROUNDS - 3}


def test_without_the_gates_a_flipped_sign_gets_in(honest: Run):
    run = Run(ScreenRule(), factor=-1.0).go()
    assert run.accepted(ROUNDS) == sorted(LANGUAGES)
    assert run.losses[-1] > honest.losses[-1]
