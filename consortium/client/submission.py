"""From a kind and overrides to a signed spec: what `consortium submit` does before it submits."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import consortium
from consortium.client.api import Client
from consortium.config import compose_job, default_dirs
from consortium.domain import ids
from consortium.domain.job import JobSpec, Resources, SignedSpec
from consortium.errors import UsageError
from consortium.keys.canonical import canonical
from consortium.keys.code import code_digest
from consortium.keys.signing import SigningKey


def sign_spec(spec: JobSpec, key: SigningKey) -> SignedSpec:
    """Return a spec with its submitter's signature."""
    return SignedSpec(spec=spec, signature=key.sign(canonical(spec)))


def make_spec(
    client: Client,
    kind: str,
    overrides: Sequence[str] = (),
    *,
    person: str,
    key: SigningKey,
    account: str = "",
    jobs_dir: str | Path | None = None,
) -> SignedSpec:
    """Return the signed spec of a job: `configs/job/KIND.yaml` with overrides, dataset names resolved to ids.

    The account is `account`, else the config's, else the person's partner. `jobs_dir` holds the programs whose digest
    is signed (default: `jobs/` beside the configs). Raises ConfigError, and NotFoundError for an unknown dataset.
    """
    composed = compose_job(kind, tuple(overrides))
    paying = account or composed.account or ids.partner_of(person)
    if ids.partner_of(paying) != ids.partner_of(person):
        raise UsageError(
            f"{person} cannot spend from account {paying!r}, which is not its partner's",
            fix=f"name an account of {ids.partner_of(person)}; `consortium shares` lists them",
        )
    programs = Path(jobs_dir) if jobs_dir is not None else default_dirs().configs.parent / "jobs"
    spec = JobSpec(
        kind=composed.kind,
        name=composed.name,
        account=paying,
        submitter=person,
        purpose=composed.purpose,
        inputs=tuple(client.dataset(name).id for name in composed.inputs),
        resources=Resources(
            gpus=composed.gpus,
            walltime_s=composed.walltime_s,
            flavors=composed.flavors,
            gpus_per_worker=composed.gpus_per_worker,
        ),
        params=composed.params,
        code_digest=code_digest(Path(consortium.__file__).parent, programs),
        sites=composed.sites,
        min_sites=composed.min_sites,
        priority=composed.priority,
        model=_model(client, composed.model),
        submitted_ms=time.time_ns() // 1_000_000,
        nonce=secrets.token_hex(16),
    )
    return sign_spec(spec, key)


def _model(client: Client, named: str) -> str:
    """Return the id of the pretrain job that `named` means: an id, or the name of the latest one that succeeded."""
    if not named or ids.is_id(named, "job"):
        return named
    found = [job for job in client.jobs(states=["succeeded"]) if job.spec.name == named]
    return found[-1].id if found else named
