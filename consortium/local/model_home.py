"""Trained models at home, where a private store's keys are: text from them, and files that other programs read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from consortium.errors import NotFoundError, VerificationError
from consortium.local.paths import FederationDir
from consortium.local.steward import private_store, settings_of
from consortium.storage.objects import ObjectStore
from consortium.train.checkpoints import Checkpoints
from consortium.train.export import Precision, export_model
from consortium.train.generate import Sampling, generate, load_decoder
from consortium.train.keep import Keep, Origin
from consortium.train.outer import Vector


def generate_at_home(
    job: str,
    text: str,
    sampling: Sampling,
    *,
    round: int = -1,
    site: str = "",
) -> Iterator[str]:
    """Yield text after `text`, piece by piece, as the outer state of a pretrain job goes on.

    Raises NotFoundError where no site of this machine keeps the job's outer states.
    """
    from consortium.data import bpe

    origin, vector, store = model_at_home(job, round=round, site=site)
    tokenizer = bpe.load(tokenizer_of(store, origin))
    model = load_decoder(origin, vector)
    yield from pieces(generate(model, tokenizer.encode(text).ids, sampling, eos=bpe.EOS_ID), tokenizer.decode)


def pieces(tokens: Iterable[int], decode: Callable[[list[int]], str]) -> Iterator[str]:
    """Yield the text of tokens as they come. A character that stands in several of them is told when it is whole."""
    read: list[int] = []
    whole = told = ""
    for token in tokens:
        read.append(token)
        whole = decode(read)
        if not whole.endswith("\N{REPLACEMENT CHARACTER}"):
            yield whole[len(told) :]
            told = whole
    # The last token may end in the middle of a character; what stands before it is text.
    if rest := whole[len(told) :].rstrip("\N{REPLACEMENT CHARACTER}"):
        yield rest


def export_at_home(
    job: str,
    path: Path,
    *,
    precision: Precision = "bfloat16",
    round: int = -1,
    site: str = "",
) -> list[Path]:
    """Write the model of a pretrain job into the folder `path`; returns the files. Raises as `model_at_home` does."""
    from consortium.data import bpe

    origin, vector, store = model_at_home(job, round=round, site=site)
    return export_model(origin, vector, tokenizer_of(store, origin), path, precision=precision, eos=bpe.EOS_ID)


def checkpoint_at_home(job: str, path: Path, *, round: int = -1, site: str = "") -> list[Path]:
    """Write a whole training checkpoint into the folder `path`, as torch.distributed.checkpoint; returns the files.

    Raises as `model_at_home` does, and NotFoundError where only parameters and momentum of the round are kept.
    """
    from consortium.train.dcp import write_dcp

    keep, number, _ = _kept(job, round, site)
    origin = keep.origin(number)
    return write_dcp(origin, keep.outer(number, origin.layout.size), path)


def model_at_home(job: str, *, round: int = -1, site: str = "") -> tuple[Origin, Vector, ObjectStore]:
    """Return an outer state's model, its parameters, and the private store that keeps it.

    The first site of this machine that keeps the round, or `site`; round -1 is the newest that the site keeps. Raises
    NotFoundError where none does, VerificationError where the bytes kept are not what was written.
    """
    keep, number, store = _kept(job, round, site)
    return *keep.measured(number), store


def _kept(job: str, round: int, site: str) -> tuple[Keep, int, ObjectStore]:
    """Return where an outer state is kept, the number of its round, and the store."""
    where = FederationDir.current()
    sites = [site] if site else sorted(path.name for path in (where.root / "sites").glob("*") if path.is_dir())
    for name in sites:
        store = private_store(settings_of(where, name))
        keep = Keep(store, job)
        kept = keep.rounds()
        if kept and (round == -1 or round in kept):
            return keep, kept[-1] if round == -1 else round, store
    raise NotFoundError(
        f"no outer state {'' if round == -1 else f'{round} '}of {job} is kept at {', '.join(sites) or 'any site'} here",
        fix="name a pretrain job that ran at one of these sites, and a round that it kept",
    )


def checkpoints_at_home(job: str, site: str = "") -> dict[str, Checkpoints]:
    """Return the job's checkpoints by site, of all sites of this machine that keep any, or of `site`.

    Raises NotFoundError where none does.
    """
    where = FederationDir.current()
    sites = [site] if site else sorted(path.name for path in (where.root / "sites").glob("*") if path.is_dir())
    opened = {name: Checkpoints(private_store(settings_of(where, name)), job) for name in sites}
    if found := {name: one for name, one in opened.items() if one.listed()}:
        return found
    raise NotFoundError(
        f"no checkpoint of {job} is kept at {', '.join(sites) or 'any site'} here",
        fix="name a pretrain job that ran at one of these sites",
    )


def tokenizer_of(store: ObjectStore, origin: Origin) -> bytes:
    """Return the tokenizer that a model was trained with, from the store of a site that trained it."""
    wanted = f"/tokenizers/{origin.tokenizer_digest.removeprefix('sha256:')}.json"
    key = next((key for key in store.list("") if key.endswith(wanted)), None)
    if key is None or not origin.tokenizer_digest:
        raise NotFoundError(
            f"this site's private store does not hold the tokenizer {origin.tokenizer_digest or '(none named)'}",
            fix="use a site at which the tokenize job ran",
        )
    data = store.get(key)
    from consortium.data.bpe import tokenizer_digest

    if tokenizer_digest(data) != origin.tokenizer_digest:
        raise VerificationError("the tokenizer kept is not the one the model was trained with", where=key)
    return data
