"""Datasets, announced artifacts, agreements on digests, and the log text that legs were allowed to send."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import Connection, func, select

from consortium.domain import ids
from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Artifact, Dataset, name_family
from consortium.domain.protocol import Voucher
from consortium.errors import ConflictError, NotFoundError, UsageError
from consortium.keys.canonical import digest_json
from consortium.state import tables as t

MOST_ARTIFACTS = 10_000
"""Of one sender in one round: who awaits something reads the list of all at every look."""


def next_version(connection: Connection, name: str) -> int:
    """Return the version the next dataset of this name gets."""
    last = connection.execute(select(func.max(t.datasets.c.version)).where(t.datasets.c.name == name)).scalar()
    return (last or 0) + 1


def insert_dataset(
    connection: Connection,
    dataset: Dataset,
    *,
    now_ms: int,
    job: str = "",
    leg: str = "",
    signer: str = "",
    signature: str = "",
) -> bool:
    """Store a dataset; False where the very same is known.

    Raises ConflictError for another of its id or version, or where the name is another partner's; UsageError where id
    and name could be taken for one another.
    """
    if not ids.is_id(dataset.id, "ds"):
        raise UsageError(f"dataset id {dataset.id!r} is not of the form ds-…", where=dataset.name)
    if ids.is_id(dataset.name):
        raise UsageError(f"a dataset cannot be named like an id: {dataset.name}", where=dataset.id)
    known = connection.execute(select(t.datasets.c.doc).where(t.datasets.c.id == dataset.id)).scalar()
    if known is not None:
        if digest_json(known) == digest_json(dataset):
            return False
        raise ConflictError("another dataset has this id", where=dataset.id, fix="make a new id")
    check_name(connection, dataset.name, dataset.partner, where=dataset.id)
    if not job:
        check_family(connection, dataset)
    expected = next_version(connection, dataset.name)
    if dataset.version != expected:
        raise ConflictError(
            f"version {dataset.version} of {dataset.name} cannot follow: the next is {expected}",
            where=dataset.name,
            fix=f"register it as version {expected}",
        )
    connection.execute(
        t.datasets.insert().values(
            id=dataset.id,
            name=dataset.name,
            version=dataset.version,
            site=dataset.site,
            doc=to_json(dataset),
            job=job,
            leg=leg,
            signer=signer,
            signature=signature,
            created_ms=now_ms,
        )
    )
    return True


def check_name(connection: Connection, name: str, partner: str, *, where: str) -> None:
    """Raise ConflictError where a name is another partner's."""
    sites = connection.execute(select(t.datasets.c.site).where(t.datasets.c.name == name).distinct()).scalars()
    owners = {ids.partner_of(site) for site in sites} - {partner}
    if owners:  # or a name would lead to somebody else's data overnight
        raise ConflictError(
            f"the name {name} is {', '.join(sorted(owners))}'s: {partner} cannot add a version to it",
            where=where,
            fix="choose another name",
        )


def check_family(connection: Connection, dataset: Dataset) -> None:
    """Raise ConflictError where a new name is one that jobs on another partner's dataset give to what they write.

    Else who registers a name first would make such a job fail when it is done.
    """
    family = name_family(dataset.name)
    query = select(t.datasets.c.name, t.datasets.c.site).where(t.datasets.c.name.startswith(family, autoescape=True))
    known = {row.name: ids.partner_of(row.site) for row in connection.execute(query.distinct())}
    theirs = [n for n, owner in sorted(known.items()) if name_family(n) == family and owner != dataset.partner]
    if theirs and dataset.name not in known:
        raise ConflictError(
            f"the name {dataset.name} goes with {theirs[0]}, which is {known[theirs[0]]}'s: what jobs make of NAME is"
            " NAME-clean, NAME-tokens and NAME-tokens-heldout",
            where=dataset.id,
            fix="choose another name",
        )


def find_dataset(connection: Connection, id_or_name: str) -> Dataset:
    """Return a dataset by id, by `name@version`, or the latest version of a name; raises NotFoundError."""
    query = select(t.datasets.c.doc).order_by(t.datasets.c.version.desc()).limit(1)
    name, _, version = id_or_name.partition("@")
    if re.fullmatch(r"[0-9]{1,9}", version):
        wanted = (t.datasets.c.name == name) & (t.datasets.c.version == int(version))
    else:
        wanted = (t.datasets.c.id == id_or_name) | (t.datasets.c.name == id_or_name)
    doc = connection.execute(query.where(wanted)).scalar()
    if doc is None:
        names = sorted(set(connection.execute(select(t.datasets.c.name)).scalars()))
        known = f"known: {', '.join(names[:12])}" if names else "register one with: consortium data register"
        raise NotFoundError(f"there is no dataset {id_or_name!r}", fix=known)
    return from_json(Dataset, doc, where=id_or_name)


def list_datasets(connection: Connection, name: str = "") -> list[Dataset]:
    """Return all versions of all datasets (or of one name), oldest first."""
    query = select(t.datasets.c.doc).order_by(t.datasets.c.created_ms, t.datasets.c.id)
    if name:
        query = query.where(t.datasets.c.name == name)
    return [from_json(Dataset, doc, where="dataset") for doc in connection.execute(query).scalars()]


def voucher(connection: Connection, dataset: str) -> Voucher:
    """Return who vouches for the description of a dataset."""
    columns = (t.datasets.c.signer, t.datasets.c.signature, t.datasets.c.leg)
    row = connection.execute(select(*columns).where(t.datasets.c.id == dataset)).one()
    return Voucher(person=row.signer, signature=row.signature, leg=row.leg)


def made_by(connection: Connection, dataset: str) -> str:
    """Return the job that wrote a dataset; empty for a registered one."""
    return str(connection.execute(select(t.datasets.c.job).where(t.datasets.c.id == dataset)).scalar() or "")


def outputs_of(connection: Connection, job: str) -> list[Dataset]:
    """Return the datasets a job wrote."""
    query = select(t.datasets.c.doc).where(t.datasets.c.job == job).order_by(t.datasets.c.name, t.datasets.c.version)
    return [from_json(Dataset, doc, where="dataset") for doc in connection.execute(query).scalars()]


def announce(connection: Connection, artifact: Artifact, now_ms: int) -> bool:
    """Store an announced artifact; return False where it is known.

    Raises ConflictError for another under its key, UsageError where its sender announced too many of its round.
    """
    same = (
        (t.artifacts.c.job == artifact.job)
        & (t.artifacts.c.sender == artifact.sender)
        & (t.artifacts.c.key == artifact.key)
    )
    known = connection.execute(select(t.artifacts.c.doc).where(same)).scalar()
    if known is not None:
        if digest_json(known) == digest_json(artifact):
            return False
        raise ConflictError("another artifact was announced under this key", where=artifact.key)
    of_round = (
        (t.artifacts.c.job == artifact.job)
        & (t.artifacts.c.sender == artifact.sender)
        & (t.artifacts.c.round == artifact.round)
    )
    if connection.execute(select(func.count()).where(of_round)).scalar_one() >= MOST_ARTIFACTS:
        raise UsageError(
            f"{artifact.sender} announced {MOST_ARTIFACTS:,} artifacts of round {artifact.round} already",
            where=artifact.job,
            fix="send fewer and larger ones",
        )
    result = connection.execute(
        t.artifacts.insert().values(
            job=artifact.job,
            sender=artifact.sender,
            digest=artifact.digest,
            name=artifact.name,
            round=artifact.round,
            key=artifact.key,
            doc=to_json(artifact),
            at_ms=now_ms,
        )
    )
    number = (result.inserted_primary_key or (None,))[0]
    for site in sorted(set(artifact.recipients)):
        connection.execute(t.artifact_recipients.insert().values(artifact=number, site=site))
    return True


def artifacts_for(connection: Connection, job: str, recipient: str, *, round: int | None = None) -> list[Artifact]:
    """Return what was announced of a job, or of one round of it, to a site, oldest first."""
    query = (
        select(t.artifacts.c.doc)
        .join(t.artifact_recipients, t.artifact_recipients.c.artifact == t.artifacts.c.id)
        .where((t.artifacts.c.job == job) & (t.artifact_recipients.c.site == recipient))
        .order_by(t.artifacts.c.id)
    )
    if round is not None:
        query = query.where(t.artifacts.c.round == round)
    return [from_json(Artifact, doc, where=job) for doc in connection.execute(query).scalars()]


def agree(connection: Connection, *, job: str, topic: str, site: str, digest: str, signature: str, now_ms: int) -> None:
    """Keep a site's digest for a topic. Raises ConflictError where it published another before."""
    values = {"job": job, "topic": topic, "site": site}
    same = (t.agreements.c.job == job) & (t.agreements.c.topic == topic) & (t.agreements.c.site == site)
    known = connection.execute(select(t.agreements.c.digest).where(same)).scalar()
    if known is None:
        connection.execute(t.agreements.insert().values(**values, digest=digest, signature=signature, at_ms=now_ms))
    elif known != digest:
        raise ConflictError(f"{site} published another digest for {topic} before", where=f"{job} {topic}: {known}")


def agreements(connection: Connection, job: str, topic: str) -> dict[str, str]:
    """Return the digests published for a topic, by site."""
    return {site: said["digest"] for site, said in signed_agreements(connection, job, topic).items()}


def signed_agreements(connection: Connection, job: str, topic: str) -> dict[str, dict[str, str]]:
    """Return digest and signature of each site that published a digest for a topic."""
    columns = (t.agreements.c.site, t.agreements.c.digest, t.agreements.c.signature)
    query = select(*columns).where((t.agreements.c.job == job) & (t.agreements.c.topic == topic))
    ordered = connection.execute(query.order_by(t.agreements.c.site))
    return {row.site: {"digest": row.digest, "signature": row.signature} for row in ordered}


def said_of_states(connection: Connection, job: str) -> frozenset[str]:
    """Return the sites that published the digest of any of a job's outer states."""
    query = select(t.agreements.c.site).where((t.agreements.c.job == job) & t.agreements.c.topic.startswith("outer/"))
    return frozenset(connection.execute(query.distinct()).scalars())


def newest_agreement(connection: Connection, job: str, topic: str) -> int:
    """Return when a site last published a digest for a topic, UTC milliseconds; 0 where none did."""
    same = (t.agreements.c.job == job) & (t.agreements.c.topic == topic)
    return connection.execute(select(func.max(t.agreements.c.at_ms)).where(same)).scalar() or 0


def count_topics(connection: Connection, job: str, site: str) -> int:
    """Return for how many topics of a job a site published a digest."""
    theirs = (t.agreements.c.job == job) & (t.agreements.c.site == site)
    return connection.execute(select(func.count()).select_from(t.agreements).where(theirs)).scalar_one()


def count_log(connection: Connection, leg: str) -> int:
    """Return how many characters of a leg's log are kept."""
    query = select(func.coalesce(func.sum(func.length(t.logs.c.text)), 0)).where(t.logs.c.leg == leg)
    return int(connection.execute(query).scalar_one())


def add_log(
    connection: Connection, *, job: str, leg: str, site: str, offset: int, text: str, now_ms: int, most: int
) -> int:
    """Keep a piece of a leg's log, `most` characters of it, and return how many were kept.

    Of a piece that is sent again, and may have grown, only what is new is kept.
    """
    while text:
        query = select(t.logs.c.text).where((t.logs.c.leg == leg) & (t.logs.c.offset == offset))
        known = next((k for k in connection.execute(query).scalars() if k and text.startswith(k)), None)
        if known is None:
            break
        offset, text = offset + len(known), text[len(known) :]
    text = text[: max(0, most)]
    if text:
        connection.execute(t.logs.insert().values(job=job, leg=leg, site=site, offset=offset, text=text, at_ms=now_ms))
    return len(text)


def read_logs(
    connection: Connection, job: str, *, site: str = "", after: int = 0, limit: int = 500
) -> list[dict[str, Any]]:
    """Return pieces of a job's logs that follow number `after`, oldest first."""
    query = select(t.logs).where((t.logs.c.job == job) & (t.logs.c.id > after)).order_by(t.logs.c.id).limit(limit)
    if site:
        query = query.where(t.logs.c.site == site)
    return [
        {"seq": row.id, "site": row.site, "leg": row.leg, "offset": row.offset, "text": row.text, "at_ms": row.at_ms}
        for row in connection.execute(query)
    ]
