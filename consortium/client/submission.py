"""From a kind and overrides to signed specs: what `consortium submit` does before it submits."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import consortium
from consortium.client.api import Client
from consortium.config import compose_job, default_dirs, nearest
from consortium.domain import ids
from consortium.domain.data import Dataset
from consortium.domain.job import MAX_ARRAY, ArrayMember, JobKind, JobSpec, Resources, SignedSpec
from consortium.domain.units import moment_ms
from consortium.errors import NotFoundError, UsageError
from consortium.keys.canonical import canonical
from consortium.keys.code import code_digest
from consortium.keys.signing import SigningKey

INDEX = "%a"
"""Stands for an array member's index in overrides."""


def sign_spec(spec: JobSpec, key: SigningKey) -> SignedSpec:
    """Return a spec with its submitter's signature."""
    return SignedSpec(spec=spec, signature=key.sign(canonical(spec)))


def code_digest_here() -> str:
    """Return the digest of the code that jobs submitted from here name: the package and `jobs/` beside the configs."""
    return code_digest(Path(consortium.__file__).parent, default_dirs().configs.parent / "jobs")


def draft_spec(
    client: Client,
    kind: str,
    overrides: Sequence[str] = (),
    *,
    person: str,
    account: str = "",
) -> JobSpec:
    """Return a job as `configs/job/KIND.yaml` and the overrides say, dataset names resolved to ids.

    Where they name no sites, the homes of the inputs stand in it: sites take nobody as a peer who was not signed for.

    It has no nonce and no signature: nobody can submit it as it is. That is what a dry run sends. The account is
    `account`, else the config's, else the person's partner. Its code digest covers the package and `jobs/` beside the
    configs. Raises ConfigError, and NotFoundError for an unknown dataset or model.
    """
    return _Desk(client, person, account).draft(kind, overrides)


class _Desk:
    """Drafts specs of one person; what all of them share is found out once."""

    def __init__(self, client: Client, person: str, account: str) -> None:
        self._client, self._person, self._account = client, person, account
        self._code_digest = code_digest_here()
        self._inputs: dict[str, Dataset] = {}
        self._now_ms = time.time_ns() // 1_000_000

    def draft(self, kind: str, overrides: Sequence[str]) -> JobSpec:
        composed = compose_job(kind, tuple(overrides))
        paying = self._account or composed.account or ids.partner_of(self._person)
        if ids.partner_of(paying) != ids.partner_of(self._person):
            raise UsageError(
                f"{self._person} cannot spend from account {paying!r}, which is not its partner's",
                fix=f"name an account of {ids.partner_of(self._person)}; `consortium quota show` lists them",
            )
        inputs = [self._dataset(name) for name in composed.inputs]
        return JobSpec(
            kind=composed.kind,
            name=composed.name,
            account=paying,
            submitter=self._person,
            purpose=composed.purpose,
            inputs=tuple(item.id for item in inputs),
            resources=Resources(
                gpus=composed.gpus,
                walltime_s=composed.walltime_s,
                flavors=composed.flavors,
                gpus_per_worker=composed.gpus_per_worker,
                throughput=composed.throughput,
            ),
            params=composed.params,
            code_digest=self._code_digest,
            sites=composed.sites or tuple(sorted({item.site for item in inputs})),
            min_sites=composed.min_sites,
            priority=composed.priority,
            model=_model(self._client, composed.model),
            submitted_ms=self._now_ms,
            after=composed.after,
            deadline_ms=moment_ms(composed.deadline, self._now_ms) if composed.deadline else 0,
            preemptible=composed.preemptible,
            checkpoint_every_s=composed.checkpoint_every_s,
        )

    def _dataset(self, name: str) -> Dataset:
        if name not in self._inputs:
            self._inputs[name] = self._client.dataset(name)
        return self._inputs[name]


def finish_spec(draft: JobSpec, key: SigningKey) -> SignedSpec:
    """Return a draft with a fresh nonce, signed: a submission."""
    return sign_spec(replace(draft, nonce=secrets.token_hex(16)), key)


def make_spec(
    client: Client,
    kind: str,
    overrides: Sequence[str] = (),
    *,
    person: str,
    key: SigningKey,
    account: str = "",
) -> SignedSpec:
    """Return the signed spec of a job: `draft_spec`, finished."""
    draft = draft_spec(client, kind, overrides, person=person, account=account)
    return finish_spec(draft, key)


def draft_array(
    client: Client,
    kind: str,
    overrides: Sequence[str] = (),
    *,
    size: int,
    limit: int = 0,
    person: str,
    account: str = "",
) -> tuple[JobSpec, ...]:
    """Return the members of a job array, each a job of its own: `%a` in an override stands for its index, from 0.

    Names get the index at their end unless it stands in them already. The server keeps all but `limit` members out of
    line (0: none). Raises what `draft_spec` raises.
    """
    if not 1 <= size <= MAX_ARRAY:
        raise UsageError(f"an array has 1 to {MAX_ARRAY:,} members, got {size:,}", where="--array")
    if not 0 <= limit <= size:
        raise UsageError(f"the limit must be 0 (none) to {size}, got {limit}", where="--array-limit")
    array = ids.make_id("arr", time.time_ns() // 1_000_000, secrets.token_bytes(10))
    desk = _Desk(client, person, account)
    alike = not any(INDEX in override for override in overrides)
    named = any(override.startswith("name=") and INDEX in override for override in overrides)
    drafts = [
        desk.draft(kind, [override.replace(INDEX, str(index)) for override in overrides])
        for index in range(1 if alike else size)
    ]
    return tuple(
        replace(
            draft,
            name=draft.name if named else f"{draft.name}-{index}",
            array=ArrayMember(id=array, index=index, size=size, limit=limit),
        )
        for index, draft in enumerate(drafts * size if alike else drafts)
    )


def _model(client: Client, named: str) -> str:
    """Return the id of the pretrain job that `named` means: an id, or the name of the latest one that succeeded.

    Raises NotFoundError where none of that name has.
    """
    if not named or ids.is_id(named, "job"):
        return named
    trained = [job for job in client.jobs(states=["succeeded"], limit=10_000) if job.spec.kind is JobKind.PRETRAIN]
    found = [job for job in trained if job.spec.name == named]
    if not found:
        right = nearest(named, {job.spec.name for job in trained}) if trained else "train one first"
        raise NotFoundError(f"no pretrain job named {named!r} has succeeded", where=f"model={named}", fix=right)
    return found[-1].id
