"""Replaying training runs at home: on a machine with the keys of a site's private store, without any server."""

from __future__ import annotations

import time
from pathlib import Path

from consortium.errors import NotFoundError
from consortium.keys.roster import Rosters
from consortium.keys.trust import Trust
from consortium.local.paths import FederationDir
from consortium.local.steward import private_store, settings_of
from consortium.site.db import SiteDb
from consortium.site.documents import Documents
from consortium.site.rulings import VerifiedRulings
from consortium.site.settings import SiteSettings
from consortium.train.book import RoundBook
from consortium.train.replay import Replayed, kept_params, replay


def replay_at_home(job: str, site: str = "", *, trust: Trust | None = None) -> dict[str, tuple[Replayed, ...]]:
    """Return what replaying `job` came to at each site on this machine that keeps rounds of it, or at `site` alone.

    Contributions that one of several sites did not keep are read at the others; `site` alone rests on its own store.
    Signatures are checked against `trust`, by default the keys pinned by the federation here, and admins' against the
    rosters that the site holds, but for what its gateway verified. Raises NotFoundError where no site here keeps any.
    """
    home = FederationDir.current()
    pinned = trust or (Trust.load(home.trust_file) if home.trust_file.exists() else None)
    names = [site] if site else sorted(path.parent.name for path in (home.root / "sites").glob("*/config.json"))
    every = {name: settings_of(home, name) for name in names}
    stores = {name: private_store(settings) for name, settings in every.items()}
    stores = {name: store for name, store in stores.items() if RoundBook(store, job).numbers()}
    found = {}
    for name, store in stores.items():
        found[name] = replay(
            store,
            job,
            kept_params(store, job),
            trust=pinned,
            rosters=_rosters(every[name], pinned),
            verified=_verified(every[name], job),
            beside={other: lent for other, lent in stores.items() if other != name},
        )
    if not found:
        raise NotFoundError(
            f"no round of {job} is kept at {site or 'any site on this machine'}",
            where=str(home.root / "sites"),
            fix="run it at a site that took part in the job",
        )
    return found


def _rosters(settings: SiteSettings, trust: Trust | None) -> Rosters | None:
    """The people partners vouch for, as the site's signed documents say; None without these or keys."""
    if trust is None or not Path(settings.documents_dir or "-").is_dir():
        return None
    documents = Documents(settings.documents_dir, settings.site.partner, trust)
    return documents.rosters(time.time_ns() // 1_000_000)


def _verified(settings: SiteSettings, job: str) -> frozenset[str]:
    """The rulings on a job that the site's gateway verified; none without its book."""
    if not (Path(settings.home) / "site.db").exists():
        return frozenset()
    db = SiteDb(settings.home)
    try:
        return VerifiedRulings(db).of(job)
    finally:
        db.close()
