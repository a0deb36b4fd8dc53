"""Small builders of domain objects for tests: sensible defaults, override what the test is about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from consortium.domain.data import ArtifactClass, Dataset, Shard
from consortium.domain.ids import make_id, partner_of
from consortium.domain.job import JobKind, JobSpec, Priority, Resources
from consortium.domain.partner import Cotenancy, Flavor, Node, Site
from consortium.domain.quota import Account, Quota
from consortium.storage.shards import join_tokens, token_width

NOW_MS = 1_750_000_000_000
"""A fixed instant for tests: 2025-06-15T15:06:40Z."""

_MEASURED = {
    "h100-sxm": (80, "989", "610", 700, "1.0"),
    "a100-80g": (80, "312", "210", 400, "0.344"),
    "a100-40g": (40, "312", "205", 400, "0.336"),
    "mi300x": (192, "1307", "640", 750, "1.049"),
}


def new_id(prefix: str, number: int, at_ms: int = NOW_MS) -> str:
    """A well-formed id whose body is fixed by `number`."""
    return make_id(prefix, at_ms, number.to_bytes(10, "big"))


def flavor(id: str = "h100-sxm", **changes: Any) -> Flavor:
    memory_gb, peak, measured, watts, factor = _MEASURED.get(id, _MEASURED["h100-sxm"])
    fields: dict[str, Any] = {
        "id": id,
        "memory_bytes": memory_gb * 10**9,
        "peak_tflops": peak,
        "measured_tflops": measured,
        "board_power_w": watts,
        "reference_factor": factor,
        "factor_version": "test-1",
    }
    return Flavor(**(fields | changes))


def site(
    id: str = "fr-1",
    flavor_id: str = "h100-sxm",
    nodes: tuple[int, ...] = (8,),
    cotenancy: Cotenancy = Cotenancy.PARTNER,
    **changes: Any,
) -> Site:
    """A site of its partner; `nodes` are GPUs per node, named `n0`, `n1`, ..."""
    fields: dict[str, Any] = {
        "id": id,
        "partner": partner_of(id),
        "territory": partner_of(id),
        "flavor": flavor(flavor_id),
        "nodes": tuple(Node(id=f"n{index}", gpus=gpus) for index, gpus in enumerate(nodes)),
        "cotenancy": cotenancy,
    }
    return Site(**(fields | changes))


def account(
    id: str = "fr",
    quotas: dict[str, int | tuple[int, int | None, int | None]] | None = None,
    parent: str | None = "",
    weight: int = 1,
) -> Account:
    """An account; `quotas` maps a flavor to nominal, or to (nominal, borrowing limit, lending limit)."""
    rows = []
    for name, value in sorted((quotas or {}).items()):
        nominal, borrowing, lending = value if isinstance(value, tuple) else (value, None, None)
        rows.append(Quota(account=id, flavor=name, nominal=nominal, borrowing_limit=borrowing, lending_limit=lending))
    if "/" in id and parent == "":
        parent = partner_of(id)
    return Account(id=id, parent=parent, weight=weight, quotas=tuple(rows))


def spec(kind: JobKind | str = JobKind.CLEAN, **changes: Any) -> JobSpec:
    """A job spec; `gpus`, `walltime_s`, `flavors` and `gpus_per_worker` go to its resources."""
    resources: dict[str, Any] = {"gpus": 1, "walltime_s": 3600}
    for name in ("gpus", "walltime_s", "flavors", "gpus_per_worker"):
        if name in changes:
            resources[name] = changes.pop(name)
    fields: dict[str, Any] = {
        "kind": JobKind(kind),
        "name": f"{kind}-test",
        "account": "fr",
        "submitter": "fr/amelie",
        "purpose": "research",
        "inputs": (),
        "resources": Resources(**resources),
        "params": {},
        "code_digest": "sha256:" + "0" * 64,
        "priority": Priority.NORMAL,
        "submitted_ms": NOW_MS,
        "nonce": "0" * 32,
    }
    return JobSpec(**(fields | changes))


def shard(number: int = 0, documents: int = 10, size_bytes: int = 1000, tokens: int = 0) -> Shard:
    digest = f"{number:064x}"
    return Shard(
        key=f"raw/{digest}.parquet",
        digest=f"sha256:{digest}",
        size_bytes=size_bytes,
        documents=documents,
        tokens=tokens,
    )


def dataset(
    name: str = "laws-fr",
    site_id: str = "fr-1",
    artifact_class: ArtifactClass | str = ArtifactClass.RAW,
    number: int = 0,
    **changes: Any,
) -> Dataset:
    fields: dict[str, Any] = {
        "id": new_id("ds", number),
        "name": name,
        "version": 1,
        "site": site_id,
        "territory": partner_of(site_id),
        "artifact_class": ArtifactClass(artifact_class),
        "languages": ("fr",),
        "licence": "CC-BY-4.0",
        "source": "test",
        "shards": (shard(number),),
    }
    return Dataset(**(fields | changes))


def token_shard(documents: Iterable[Sequence[int]], *, eos: int, vocab_size: int) -> bytes:
    """A token shard of `documents`, each followed by `eos`."""
    bodies = [np.array([*tokens, eos], dtype=f"<u{token_width(vocab_size)}") for tokens in documents]
    return join_tokens(bodies, [body.size for body in bodies], eos=eos, vocab_size=vocab_size)
