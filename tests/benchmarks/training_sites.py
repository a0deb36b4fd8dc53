"""Three sites of a federated training, one after another in one process: what `training`'s figures are measured on.

Inner steps (`InnerWorker`), codes, screening, the certificate's rule, the weighted sum and the outer step are the
package's own. What is left out: Ray, gateways, sealing, signatures, stores and every wait. All sites judge the same
bytes, so verdicts are made once and given in every site's name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from consortium.domain.codec import to_json
from consortium.domain.pretraining import EvaluateConfig, PretrainConfig
from consortium.domain.screening import ScreenRule
from consortium.domain.training import Certificate, Commit, Verdict
from consortium.keys.canonical import digest as digest_of
from consortium.train.codes import FP32, Code
from consortium.train.combine import combine
from consortium.train.evaluate import held_out_loss
from consortium.train.inner import InnerWorker
from consortium.train.keep import Origin
from consortium.train.order import DataOrder, Indices, Sequences
from consortium.train.outer import Moments, Vector, nesterov, norm_of, vector_digest
from consortium.train.rounds import certify
from consortium.train.schedule import Rounds
from consortium.train.screen import Gates, screen
from consortium.train.shared import Sharing
from consortium.train.within import InnerResult

JOB = "job-0000000000000000000000000b"
VOCAB = 256
"""Tokens are bytes."""
KEEP_EVERY = 5
"""Inner steps after which a site's progress is kept, where a site is killed."""
HELD_OUT_EVERY = 50
"""Every 50th document is held out."""
Bytes = npt.NDArray[np.uint8]
Meddle = Callable[[str, int, Vector], Vector]
"""What a site sends instead of its pseudo-gradient: site, round, the honest vector."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """One language's bytes."""

    train: Bytes
    held_out: Bytes


def folder() -> Path:
    """Where the corpora are, if they are."""
    return Path(os.environ.get("CONSORTIUM_CORPORA", Path(__file__).parents[3] / "shared" / "corpora"))


def corpora() -> dict[str, Corpus]:
    """The real corpora as bytes by site (`de-1` and so on); empty, and it is said, where they are missing."""
    found = {}
    for path in sorted(folder().glob("*.parquet")):
        texts = pq.read_table(path, columns=["text"]).column("text").to_pylist()
        held = [text for place, text in enumerate(texts) if place % HELD_OUT_EVERY == 0]
        rest = [text for place, text in enumerate(texts) if place % HELD_OUT_EVERY]
        found[f"{path.stem}-1"] = Corpus(_bytes(rest), _bytes(held))
    if not found:
        print(f"no corpora in {folder()}: name their folder in CONSORTIUM_CORPORA", file=sys.stderr)
    return found


def _bytes(texts: list[str]) -> Bytes:
    return np.frombuffer("\n\n".join(texts).encode(), dtype=np.uint8)


class Pool(Sequences):
    """What one cluster reads that holds every site's text: the sites' own sequences, one of each in turn.

    So data parallel with three times the batch sees in each step exactly what the three sites see in that step.
    """

    def __init__(self, sites: dict[str, Sequences], seed: int) -> None:
        super().__init__([], 1)
        self._sites = list(sites.values())
        self._orders = [DataOrder(seed, name, len(one)) for name, one in sites.items()]

    def __len__(self) -> int:
        return 1 << 40

    def read(self, numbers: Indices) -> npt.NDArray[np.int64]:
        """Return the sequences: number n is the n // 3-th of site n % 3."""
        count = len(self._sites)
        rows = [
            self._sites[int(n) % count].read(self._orders[int(n) % count].at(int(n) // count, 1))[0] for n in numbers
        ]
        return np.stack(rows)


@dataclass(kw_only=True)
class Site:
    """A site's worker and where it stands."""

    name: str
    worker: InnerWorker
    position: int = 0
    residual: Vector | None = None
    """What its code has dropped so far."""


@dataclass(kw_only=True)
class Outcome:
    """What a run came to."""

    outer: Vector
    origin: Origin
    digests: list[str] = field(default_factory=list)
    refused: dict[int, dict[str, str]] = field(default_factory=dict)
    """Reason by site, by round: what more than half of the sites said no to."""
    sent_bytes: int = 0
    """By each site to one recipient, over all rounds."""
    tokens: int = 0
    """Counted in certificates."""
    again: int = 0
    """Inner steps done a second time."""


class Federation:
    """Sites that train one model."""

    def __init__(self, params: PretrainConfig, texts: dict[str, Corpus]) -> None:
        self.params = params
        context = params.model.context
        self.sequences = {name: Sequences([text.train], context) for name, text in sorted(texts.items())}
        self._held_out = {name: Sequences([text.held_out], context) for name, text in sorted(texts.items())}

    def single(self) -> Outcome:
        """Train on one cluster, data parallel, on the same sequences in the same steps as the sites would."""
        params = self.params
        many = replace(params.data, batch_size=params.data.batch_size * len(self.sequences), shuffle=False)
        worker = self._worker("pool", Pool(self.sequences, params.seed), replace(params, data=many))
        steps = params.outer.rounds * params.outer.inner_steps
        done = worker.run(worker.initial(), position=0, step=0, count=steps)
        return Outcome(outer=done.local, origin=self._origin(worker), tokens=done.tokens)

    def run(
        self,
        *,
        code: Code = FP32,
        meddle: Meddle | None = None,
        forge: Meddle | None = None,
        rule: ScreenRule | None = None,
        kill: Mapping[int, tuple[str, int]] | None = None,
    ) -> Outcome:
        """Train all rounds, sending in `code` and screening by `rule`.

        `meddle` changes pseudo-gradients, `forge` the states that cross where they are shared, packed.
        `kill` names, by round, the site whose process ends after so many steps; what was kept every `KEEP_EVERY` steps
        is where a new one goes on.
        """
        sites = {
            name: Site(name=name, worker=self._worker(name, text, self.params)) for name, text in self.sequences.items()
        }
        first = next(iter(sites.values())).worker
        outer = first.initial()
        out = Outcome(outer=outer, origin=self._origin(first), digests=[vector_digest(outer)])
        momentum = np.zeros_like(outer)
        rounds, sharing = Rounds.of(self.params), Sharing(first.layout, first.covered)
        if self.params.outer.share == "optimizer":
            code = replace(code, state=sharing.size)
        for number in range(1, self.params.outer.rounds + 1):
            steps = range(rounds.before(number), rounds.before(number + 1))
            vectors, sent, commits = {}, {}, []
            for name, site in sites.items():
                killed = (kill or {}).get(number, ("", 0))
                done = self._inner(site, out, steps, killed[1] if killed[0] == name else 0)
                gradient = np.subtract(out.outer, done.local)
                if meddle is not None:
                    gradient = meddle(name, number, gradient)
                moments = site.worker.moments() if code.state else None
                state = None if moments is None else sharing.packed(moments)
                if forge is not None and state is not None:
                    state = forge(name, number, state)
                made = code.encode(gradient, site.residual, state)
                site.residual, site.position = made.residual, done.position
                sent[name], vectors[name] = made.data, code.decode(made.data, len(outer))
                commits.append(self._commit(number, len(steps), name, made.data, vectors[name], done))
            out.sent_bytes += len(made.data)
            gates = Gates(rule=rule or ScreenRule(), momentum=momentum, sharing=sharing if code.state else None)
            certificate = self._judge(number, out, commits, sent, gates, code)
            out.tokens += sum(part.tokens for part in certificate.contributions)
            if code.state and certificate.contributions:
                states = {name: code.state_in(data, len(outer)) for name, data in sent.items()}
                mean = sharing.mean(certificate.contributions, states, self.params.optim.betas)
                for site in sites.values():
                    site.worker.restore(Moments(mean, rounds.before(number + 1)))
            if certificate.contributions:
                mean = combine(certificate.contributions, vectors, len(outer), gates.rule)
                out.outer, momentum = nesterov(
                    out.outer, momentum, mean, lr=self.params.outer.lr, momentum_decay=self.params.outer.momentum
                )
            out.digests.append(vector_digest(out.outer))
        return out

    def loss(self, out: Outcome) -> float:
        """Return the held-out loss in nats per byte, the mean over the languages."""
        asked = EvaluateConfig(batches=40, batch_size=16)
        device = torch.device("cpu")
        losses = [held_out_loss(out.origin, out.outer, text, asked, device)[0] for text in self._held_out.values()]
        return float(np.mean(losses))

    # -- parts of a round -----------------------------------------------------------------------------------------

    def _worker(self, name: str, text: Sequences, params: PretrainConfig) -> InnerWorker:
        return InnerWorker(params, VOCAB, text, name)

    def _inner(self, site: Site, out: Outcome, steps: range, killed: int) -> InnerResult:
        """Do a round's inner steps; with `killed`, in a process that ends after so many and in the one after it."""
        every, step = len(steps), steps.start
        if not killed:
            return site.worker.run(out.outer, position=site.position, step=step, count=every)
        kept = killed // KEEP_EVERY * KEEP_EVERY
        done, moments = None, site.worker.moments()
        if kept:
            done = site.worker.run(out.outer, position=site.position, step=step, count=kept)
            moments = site.worker.moments()
        out.again += killed - kept
        site.worker = self._worker(site.name, self.sequences[site.name], self.params)
        if moments is not None:
            site.worker.restore(moments)
        start, position = (done.local, done.position) if done else (out.outer, site.position)
        rest = site.worker.run(start, position=position, step=step + kept, count=every - kept)
        tokens, loss = (done.tokens, done.loss * kept) if done else (0, 0.0)
        return replace(rest, tokens=tokens + rest.tokens, loss=(loss + rest.loss * (every - kept)) / every)

    def _commit(self, number: int, steps: int, name: str, data: bytes, vector: Vector, done: InnerResult) -> Commit:
        return Commit(
            job=JOB,
            round=number,
            site=name,
            tokens=done.tokens,
            steps=steps,
            digest=digest_of(data),
            norm=norm_of(vector).hex(),
            loss=done.loss.hex(),
        )

    def _judge(
        self, number: int, out: Outcome, commits: list[Commit], sent: Mapping[str, bytes], gates: Gates, code: Code
    ) -> Certificate:
        seen = screen(commits, sent, {}, len(out.outer), gates, code=code)
        said: list[dict[str, Any]] = [one.as_verdict() for one in seen]
        verdicts = [Verdict(job=JOB, round=number, judge=judge, **one) for judge in sent for one in said]
        refused = {one.commit.site: one.reason for one in seen if one.reason}
        if refused:
            out.refused[number] = refused
        return certify(JOB, number, out.digests[-1], commits, verdicts)

    def _origin(self, worker: InnerWorker) -> Origin:
        return Origin(
            model=to_json(self.params.model),
            vocab_size=VOCAB,
            tokenizer_digest="",
            names=worker.layout.names,
            shapes=worker.layout.shapes,
        )
