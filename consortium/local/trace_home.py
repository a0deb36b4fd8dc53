"""Where documents and tokens lie and come from, looked up at home: on a machine with the keys of a partner's stores."""

from __future__ import annotations

from typing import Any

from consortium.client.api import Client
from consortium.data.lineage import Place, find_document, locate
from consortium.domain.data import ArtifactClass
from consortium.errors import NotFoundError
from consortium.local.paths import FederationDir
from consortium.local.steward import private_store
from consortium.site.settings import SiteSettings
from consortium.storage.objects import ObjectStore


def find_at_home(client: Client, document: str, partner: str) -> dict[str, Any]:
    """Return what the sites of `partner` on this machine know of a document, and the models made of it.

    `document` is `text_digest` of a text, as it came in or as it was cleaned: it is looked for in the private stores
    and never leaves them. `found` and `unread` are those of `lineage.find_document`; `models` the pretrain jobs that
    the server says read a dataset in which it stands, `sites` where it was looked for, `elsewhere` the sites that only
    their own partners can search. Raises NotFoundError where no site of the partner is here, or none knows it.
    """
    datasets = client.datasets()
    elsewhere = sorted({dataset.site for dataset in datasets if dataset.partner != partner})
    found: list[dict[str, Any]] = []
    unread: dict[str, str] = {}
    stores = _stores(partner, f"a document of {partner}")
    for site, store in stores.items():
        lines, missed = find_document(document, [dataset for dataset in datasets if dataset.site == site], store)
        found, unread = found + lines, unread | missed
    if not found:
        raise NotFoundError(
            f"no document {document} at {', '.join(stores)}",
            where=f"not looked in: {', '.join(sorted(unread))}" if unread else None,
            fix=f"others are known at their homes only: at {', '.join(elsewhere)} run consortium data trace {document}"
            if elsewhere
            else None,
        )
    models: dict[str, dict[str, Any]] = {}
    for dataset in sorted({line["dataset"] for line in found if line["class"] == ArtifactClass.TOKENS.value}):
        traced = client.trace(dataset)
        models |= {job["id"]: job for job in traced["jobs"] if job["id"] in traced["models"]}
    return {
        "document": document,
        "sites": list(stores),
        "found": found,
        "unread": unread,
        "models": [models[key] for key in sorted(models)],
        "elsewhere": elsewhere,
    }


def token_at_home(client: Client, shard: str, position: int, partner: str) -> Place:
    """Return which document a token of a shard comes from; `shard` is the digest or how it begins.

    Raises NotFoundError where its home is no site of `partner` on this machine, and what `lineage.locate` raises.
    """
    traced = client.trace(shard)
    homes = {item["id"]: item["site"] for item in traced["datasets"]}
    held = [item["dataset"] for item in traced["shard"]["in"]]
    stores = _stores(partner, f"the index of {traced['root']}")
    for dataset in held:
        if homes[dataset] in stores:
            return locate(client.dataset(dataset), traced["root"], position, stores[homes[dataset]])
    raise NotFoundError(
        f"the shard's index lies at {', '.join(homes[dataset] for dataset in held)}; only its own partner can read it",
        where=traced["root"],
        fix="ask there for: consortium data trace SHARD --token N",
    )


def _stores(partner: str, what: str) -> dict[str, ObjectStore]:
    """Return the private stores of a partner's sites on this machine, by site; NotFoundError where there is none."""
    try:
        root = FederationDir.current().root / "sites"
    except NotFoundError:
        root = None
    files = sorted(root.glob(f"{partner}-*/config.json")) if root else []
    if not files:
        raise NotFoundError(
            f"no site of {partner!r} is on this machine, and {what} is known at its home only",
            where=str(root) if root else None,
            fix="run it where the keys of the site's private store are",
        )
    return {path.parent.name: private_store(SiteSettings.load(path)) for path in files}
