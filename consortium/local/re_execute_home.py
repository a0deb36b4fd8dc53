"""Inner steps done again at home: where a site's private store, its signing key and its book of legs are.

What is compared with is what the site committed to, as the round's certificate names it, so a store that was put right
afterwards does not pass. What is taken on the site's word: its data position at the start of the round, its
optimiser's state too unless it follows from a kept round that shared it, and that this machine runs what it says it
runs. An auditor who stands beside it signs what came out.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import consortium
from consortium.domain.codec import to_json
from consortium.domain.pretraining import PretrainConfig
from consortium.domain.protocol import LegOffer
from consortium.domain.records import RecordType, ReExecution
from consortium.domain.training import Commit, Round
from consortium.errors import ConfigError, NotFoundError, UsageError, VerificationError
from consortium.keys.code import code_digest
from consortium.keys.signing import SigningKey, sign_value
from consortium.local.paths import FederationDir
from consortium.local.steward import private_store, settings_of
from consortium.site.db import SiteDb
from consortium.site.legs import LegTable
from consortium.site.outbox import Outbox
from consortium.site.settings import SiteSettings
from consortium.storage.objects import ObjectStore
from consortium.train.again import TOLERANCE, ReExecuted, check_start, draw, re_execute
from consortium.train.book import RoundBook
from consortium.train.inner import InnerWorker
from consortium.train.keep import Keep
from consortium.train.peers import commit_of
from consortium.train.plugin import source_of
from consortium.train.tokens import open_sequences, vocabulary

MOST_DRAWN = 5_000
"""Contributions at once: every record names all of them, and one too large to be taken holds up its site's chain."""
MOST_SEED_CHARS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which contributions to do again: the rounds named, or `samples` of all, drawn by `seed`."""

    rounds: tuple[int, ...] = ()
    samples: int = 0
    seed: str = ""

    def __post_init__(self) -> None:
        if bool(self.rounds) == bool(self.samples):
            raise UsageError("name rounds, or how many samples to draw", fix="--round K, or --samples N --seed TEXT")
        if bool(self.samples) != bool(self.seed):
            raise UsageError(
                "samples are drawn by a seed",
                where="--seed",
                fix="one that the site did not choose, such as the log's root: `consortium audit log`",
            )
        if max(len(self.rounds), self.samples) > MOST_DRAWN:
            raise UsageError(f"at most {MOST_DRAWN:,} rounds are done again at once", fix="ask for fewer, in turns")
        if len(self.seed) > MOST_SEED_CHARS:
            raise UsageError(f"the seed has more than {MOST_SEED_CHARS:,} characters", where="--seed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Auditor:
    """Who watches and signs: a person of a roster, such as `uy/carmen`."""

    person: str
    key: SigningKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """What doing one contribution's inner steps again came to."""

    site: str
    round: int
    result: str
    """`re-executed`, `differs` or `cannot`."""
    what: str
    """The distance, or in words what differs or is missing."""
    record: ReExecution | None = None


def re_execute_at_home(
    job: str,
    wanted: Wanted,
    *,
    site: str = "",
    auditor: Auditor | None = None,
    keep_record: bool = True,
) -> list[Again]:
    """Do contributions of a site on this machine again, and put what each came to on record.

    The record goes through the site's outbox, signed by the site and, with `auditor`, by them. Raises NotFoundError
    where no site here (or not `site`) has a leg of the job and a round in its book.
    """
    where = FederationDir.current()
    names = [site] if site else sorted(path.parent.name for path in (where.root / "sites").glob("*/config.json"))
    found: list[Again] = []
    for name in names:
        settings = settings_of(where, name)
        store = private_store(settings)
        if RoundBook(store, job).numbers():
            found += _at_site(settings, store, job, wanted, auditor, keep_record)
    if not found:
        raise NotFoundError(
            f"no round of {job} is kept at {site or 'any site on this machine'}",
            where=str(where.root / "sites"),
            fix="run it at a site that took part in the job",
        )
    return found


def _at_site(
    settings: SiteSettings, store: ObjectStore, job: str, wanted: Wanted, auditor: Auditor | None, keep_record: bool
) -> list[Again]:
    site, db = settings.site.id, SiteDb(settings.home)
    legs = LegTable(db).of_job(job)
    if not legs:
        raise NotFoundError(
            f"{site} keeps rounds of {job}, and its book has no leg of it: nothing says what it was to train",
            where=settings.home,
            fix="restore site.db from a copy",
        )
    book = RoundBook(store, job)
    rounds = {number: item for number in book.numbers() if (item := book.round(number)) and commit_of(item, site)}
    drawn = wanted.rounds or draw(wanted.seed, job, site, rounds, wanted.samples)
    made = [_round_again(settings, store, legs[-1].offer, number, rounds.get(number)) for number in drawn]
    signed = []
    for one in made:
        if one.record is not None:
            record = replace(one.record, drawn=drawn, seed=wanted.seed)
            if auditor is not None:
                record = sign_value(auditor.key, replace(record, by=auditor.person))
            one = replace(one, record=record)
        signed.append(one)
    records = [one.record for one in signed if one.record is not None]
    if keep_record and records:
        outbox = Outbox(db, site, SigningKey.load(settings.signing_key_path))
        with db.write() as write:
            for record in records:
                outbox.add(write, RecordType.RE_EXECUTION, to_json(record), time.time_ns() // 1_000_000)
    return signed


def _round_again(
    settings: SiteSettings, store: ObjectStore, offer: LegOffer, number: int, current: Round | None
) -> Again:
    site = settings.site.id
    commit = commit_of(current, site)
    if current is None or commit is None or current.certificate is None:
        return Again(site=site, round=number, result="cannot", what=f"{site}'s book has no commit to it")
    keep = Keep(store, offer.job)
    said = ReExecution(
        job=offer.job, round=number, site=site, digest=commit.digest, same_bits=False, distance="inf", cosine="nan",
        tolerance=TOLERANCE.hex(), drawn=(number,), code_digest=_code(settings),
    )  # fmt: skip
    try:
        origin, params = keep.measured(number - 1)[0], _params(offer)
        size = origin.layout.size
        if origin.source and str(source_of(params.model.plugin)) != origin.source:
            raise NotFoundError(f"the model was computed by {origin.source}, and another is installed here now")
        if keep.outer(number - 1, size).digest != current.certificate.previous_outer:
            raise VerificationError("the outer state kept before it is not the one its certificate names")
        if RoundBook(store, offer.job).own(number, commit.digest) is None:
            raise NotFoundError(f"the contribution committed, {commit.digest}, is not kept")
        done = re_execute(keep, _worker(settings, store, offer, params), params, number, size)
        _check_as_committed(commit, done, params)
        follows = check_start(store, offer.job, params, number)
    except NotFoundError as fault:
        return Again(site=site, round=number, result="cannot", what=fault.what)
    except VerificationError as fault:
        return Again(site=site, round=number, result="differs", what=fault.what, record=said)
    said = replace(said, same_bits=done.same_bits, distance=done.distance.hex(), cosine=done.cosine.hex())
    told = "the same bits" if done.same_bits else f"relative distance {done.distance:.3g}, cosine {done.cosine:.6f}"
    if params.outer.share != "none" and (number > 1 or params.start.resume):
        told += ", from the optimisers' mean" if follows else ", from an optimiser's state that is this site's own word"
    result = "re-executed" if said.holds else "differs"
    return Again(site=site, round=number, result=result, what=f"{told} (at most {TOLERANCE})", record=said)


def _check_as_committed(commit: Commit, done: ReExecuted, params: PretrainConfig) -> None:
    """Raise VerificationError unless what was done again is what was committed: bytes, steps, tokens, and its end."""
    if done.digest != commit.digest:
        raise VerificationError(f"what is kept as contributed is {done.digest}, committed was {commit.digest}")
    tokens = done.steps * params.data.batch_size * params.model.context
    if (commit.steps, commit.tokens) != (done.steps, tokens):
        raise VerificationError(
            f"committed were {commit.tokens:,} tokens in {commit.steps:,} steps, "
            f"it is made of {tokens:,} in {done.steps:,}"
        )
    if not done.reads_on:
        raise VerificationError("the data position kept after its steps is not where they end")


def _params(offer: LegOffer) -> PretrainConfig:
    """Return the job's params for one worker that reads what all of the leg's workers read.

    The mean over workers becomes the mean over parts of one batch: the same step, in other roundings. Raises
    NotFoundError where no one worker can do it: dropout draws differently on each.
    """
    params, resources = PretrainConfig.of(offer.spec.spec.params), offer.spec.spec.resources
    workers = resources.gpus // resources.gpus_per_worker
    if workers == 1:
        return params
    if params.model.dropout:
        raise NotFoundError(f"dropout on {workers} workers is not drawn alike by one", where=offer.job)
    data = params.data
    data = replace(data, batch_size=data.batch_size * workers, accumulate=data.accumulate * workers)
    return replace(params, data=data, parallel="ddp")


def _worker(settings: SiteSettings, store: ObjectStore, offer: LegOffer, params: PretrainConfig) -> InnerWorker:
    """Return a fresh worker over the leg's inputs, whose shards are checked against their digests."""
    import torch

    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))  # as legs do: bits depend on it
    words = vocabulary(offer.inputs, held_out=False)
    device = torch.device("cuda" if settings.site.gpu_resource == "GPU" and torch.cuda.is_available() else "cpu")
    sequences = open_sequences(store, offer.inputs, params.model.context, words.size, params.data.weights)
    return InnerWorker(params, words.size, sequences, settings.site.id, device=device)


def _code(settings: SiteSettings) -> str:
    """Return the digest of the code installed here; empty where its programs are not."""
    try:
        return code_digest(Path(consortium.__file__).parent, settings.jobs_dir) if settings.jobs_dir else ""
    except ConfigError:
        return ""
