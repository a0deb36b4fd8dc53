"""The data steward's part: putting a collection into a site's private store, on the partner's own premises."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from consortium.client.api import Client
from consortium.data.register import register_collection
from consortium.domain.data import Dataset
from consortium.domain.ids import make_id
from consortium.errors import NotFoundError
from consortium.keys.canonical import canonical
from consortium.keys.signing import SigningKey
from consortium.local.paths import FederationDir
from consortium.site.settings import SiteSettings
from consortium.storage.objects import ObjectStore


def register_at_home(
    client: Client,
    key: SigningKey,
    *,
    name: str,
    paths: Sequence[Path],
    site: str,
    languages: Sequence[str] = (),
    licence: str = "",
    source: str = "",
    categories: Sequence[str] = (),
    directory: FederationDir | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Dataset:
    """Write the collections at `paths` into the private store of `site` and register the next version of `name`.

    Only the dataset's description leaves the site. Raises NotFoundError for a site that is not on this machine, and
    what `register_collection` raises for unreadable input.
    """
    settings = _settings(directory or FederationDir.current(), site)
    dataset = register_collection(
        list(paths),
        ObjectStore(
            endpoint=settings.private_store.endpoint,
            access_key=settings.private_store.access_key,
            secret_key=settings.private_store.secret(),
            bucket=settings.private_store.bucket,
        ),
        name,
        site,
        dataset_id=make_id("ds", time.time_ns() // 1_000_000, os.urandom(10)),
        territory=settings.site.territory,
        version=client.next_version(name),
        languages=languages,
        licence=licence,
        source=source,
        categories=categories,
        progress=lambda documents, size: say(f"  {documents:,} documents, {size / 1e6:,.1f} MB of text"),
    )
    return client.register_dataset(dataset, signature=key.sign(canonical(dataset)))


def _settings(directory: FederationDir, site: str) -> SiteSettings:
    path = directory.site(site) / "config.json"
    if not path.exists():
        known = sorted(p.name for p in (directory.root / "sites").glob("*") if p.is_dir())
        raise NotFoundError(
            f"site {site!r} is not on this machine",
            where=str(directory.root / "sites"),
            fix=f"one of {', '.join(known)}; a collection is registered where the site's store is",
        )
    return SiteSettings.load(path)
