"""The data steward's part: putting a collection into a site's private store, on the partner's own premises."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from consortium.client.api import Client
from consortium.data.export import export_dataset
from consortium.data.in_place import describe_in_place
from consortium.data.progress import Meter
from consortium.data.register import Upload
from consortium.domain.data import Dataset, Description
from consortium.domain.ids import make_id, partner_of
from consortium.domain.partner import Role
from consortium.errors import ConflictError, ForbiddenError, NotFoundError
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
    paths: Sequence[str | Path],
    site: str,
    languages: Sequence[str] = (),
    licence: str = "",
    source: str = "",
    categories: Sequence[str] = (),
    about: Description | None = None,
    keep_contributors: bool = False,
    endpoint: str = "",
    directory: FederationDir | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Dataset:
    """Write the collections at `paths` into the private store of `site` and register the next version of `name`.

    Paths are files, folders and `s3://bucket/prefix`: at `endpoint` with the caller's own credentials, or in the
    private store itself. Killed and run again, it goes on where it was. Only the dataset's description leaves the site.
    Raises NotFoundError for a site that is not on this machine, and what `register_collection` raises.
    """
    settings = settings_of(directory or FederationDir.current(), site)
    store = private_store(settings)
    _check_registrar(client, name, site)

    def stores(bucket: str) -> ObjectStore:
        own = bucket == store.bucket and endpoint in ("", store.endpoint)
        return store if own else ObjectStore.ambient(bucket, endpoint)

    upload = Upload(
        list(paths),
        store,
        name,
        about=about,
        keep_contributors=keep_contributors,
        stores=stores,
        progress=Meter(_telling(say)).over(name),
        note=say,
    )
    dataset = upload.run(
        site,
        dataset_id=make_id("ds", time.time_ns() // 1_000_000, os.urandom(10)),
        territory=settings.site.territory,
        version=client.next_version(name),
        languages=languages,
        licence=licence,
        source=source,
        categories=categories,
    )
    registered = _registered_before(client, dataset) if upload.resumed else None
    if registered is None:
        registered = client.register_dataset(dataset, signature=key.sign(canonical(dataset)))
    upload.finish()
    return registered


def _registered_before(client: Client, dataset: Dataset) -> Dataset | None:
    """Return the newest version of a dataset where it is the same: a run before this one ended after it was taken."""
    newest = client.datasets(dataset.name)[-1:]
    return next((known for known in newest if replace(dataset, id=known.id, version=known.version) == known), None)


def _check_registrar(client: Client, name: str, site: str) -> None:
    """Raise before anything is copied what the server would say of who registers, and of the name, afterwards."""
    caller, partner = client.whoami(), partner_of(site)
    if caller["partner"] != partner or not {Role.ENGINEER.value, Role.ADMIN.value} & set(caller["roles"]):
        raise ForbiddenError(
            f"{name} is to lie at {site}: only an engineer or admin of {partner} registers it",
            where=str(caller["subject"]),
            fix=f"ask one of {partner}",
        )
    owners = sorted({dataset.partner for dataset in client.datasets(name)} - {partner})
    if owners:
        raise ConflictError(f"the name {name} is {', '.join(owners)}'s", where=name, fix="choose another name")


def register_in_place(
    client: Client,
    key: SigningKey,
    *,
    name: str,
    paths: Sequence[str],
    site: str,
    directory: FederationDir | None = None,
    **described: Any,
) -> Dataset:
    """Register text shards that lie in the private store of `site` already; `described` as in `describe_in_place`."""
    settings = settings_of(directory or FederationDir.current(), site)
    dataset = describe_in_place(
        list(paths),
        private_store(settings),
        name,
        site,
        dataset_id=make_id("ds", time.time_ns() // 1_000_000, os.urandom(10)),
        territory=settings.site.territory,
        version=client.next_version(name),
        **described,
    )
    return client.register_dataset(dataset, signature=key.sign(canonical(dataset)))


def export_at_home(
    client: Client,
    name: str,
    path: Path,
    *,
    directory: FederationDir | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Dataset:
    """Write the text of a dataset of this machine's sites into a file here; raises what `export_dataset` raises."""
    dataset = client.dataset(name)
    store = private_store(settings_of(directory or FederationDir.current(), dataset.site))
    now_ms = time.time_ns() // 1_000_000
    export_dataset(dataset, store, path, now_ms=now_ms, progress=Meter(_telling(say)).over(name))
    return dataset


def private_store(settings: SiteSettings) -> ObjectStore:
    """Return a site's private store, opened with the site's own keys."""
    return ObjectStore(
        endpoint=settings.private_store.endpoint,
        access_key=settings.private_store.access_key,
        secret_key=settings.private_store.secret(),
        bucket=settings.private_store.bucket,
    )


def _telling(say: Callable[[str], None]) -> Callable[..., None]:
    """Return what says a meter's numbers as a line: documents, MB of files read and of text per second, time left."""

    def tell(*, done: int, of: int, **numbers: Any) -> None:
        parts = [f"{numbers.get('documents', 0):,} documents", f"{done / 1e6:,.1f} of {of / 1e6:,.1f} MB read"]
        if "mb_per_s" in numbers:
            parts.append(f"{numbers['mb_per_s']:,} MB of text/s")
        if done < of and "seconds_left" in numbers:
            minutes, seconds = divmod(int(numbers["seconds_left"]), 60)
            parts.append(f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left")
        say("  " + ", ".join(parts))

    return tell


def settings_of(directory: FederationDir, site: str) -> SiteSettings:
    """Return the settings of a site on this machine. Raises NotFoundError for any other."""
    path = directory.site(site) / "config.json"
    if not path.exists():
        known = sorted(p.name for p in (directory.root / "sites").glob("*") if p.is_dir())
        raise NotFoundError(
            f"site {site!r} is not on this machine",
            where=str(directory.root / "sites"),
            fix=f"one of {', '.join(known) or 'none'}; what a site's store holds is reached on its own premises only",
        )
    return SiteSettings.load(path)
