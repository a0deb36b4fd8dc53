"""From a composed config to a signed job spec: names become ids, defaults become explicit, the submitter signs."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import Protocol

from consortium.config import ComposedJob, compose_job, default_dirs
from consortium.domain.data import Dataset
from consortium.domain.ids import partner_of
from consortium.domain.job import JobKind, JobSpec, Resources, SignedSpec
from consortium.errors import UsageError
from consortium.keys.canonical import canonical
from consortium.keys.code import code_digest
from consortium.keys.signing import SigningKey


class Catalogue(Protocol):
    """What is asked of the server while a spec is made."""

    def dataset(self, name_or_id: str) -> Dataset:
        """Return a dataset by id, or the newest version of a name. Raises NotFoundError."""
        ...


def installed_code_digest() -> str:
    """Return the digest of the package and the programs installed here; sites run a job only where theirs is equal."""
    package = Path(__file__).resolve().parents[1]
    return code_digest(package, package.parent / "jobs")


def make_spec(
    catalogue: Catalogue,
    kind: str,
    overrides: list[str],
    *,
    person: str,
    key: SigningKey,
    account: str = "",
    configs: Path | None = None,
) -> SignedSpec:
    """Compose `configs/job/KIND.yaml` with `overrides`, resolve its names and sign it as `person`.

    Raises ConfigError for a bad key or value, NotFoundError for an unknown dataset, UsageError where a job that needs
    inputs names none.
    """
    composed = compose_job(kind, overrides, configs or default_dirs().configs)
    spec = _spec(catalogue, composed, person=person, account=account or composed.account or partner_of(person))
    return SignedSpec(spec=spec, signature=key.sign(canonical(spec)))


def _spec(catalogue: Catalogue, composed: ComposedJob, *, person: str, account: str) -> JobSpec:
    if not composed.inputs:
        raise UsageError(
            f"a {composed.kind.value} job needs inputs",
            where="inputs",
            fix=f"consortium submit {composed.kind.value} inputs=[NAME]; `consortium data ls` lists datasets",
        )
    if composed.kind is JobKind.EVALUATE and not composed.model:
        raise UsageError("an evaluate job needs a model", where="model", fix="give the pretrain job's id: model=job-…")
    return JobSpec(
        kind=composed.kind,
        name=composed.name,
        account=account,
        submitter=person,
        purpose=composed.purpose,
        inputs=tuple(catalogue.dataset(name).id for name in composed.inputs),
        resources=Resources(
            gpus=composed.gpus,
            walltime_s=composed.walltime_s,
            flavors=composed.flavors,
            gpus_per_worker=composed.gpus_per_worker,
        ),
        params=composed.params,
        code_digest=installed_code_digest(),
        sites=composed.sites,
        min_sites=composed.min_sites,
        priority=composed.priority,
        model=composed.model,
        submitted_ms=int(time.time() * 1000),
        nonce=secrets.token_hex(16),
    )
