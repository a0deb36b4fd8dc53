"""Keys, tokens and signed documents of an embedded federation: what each party would make at home, made here for all.

Keys are made once and kept; documents are signed again when their text has changed; tokens are issued at every
start, and renewed while the federation is up.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import yaml

from consortium.domain.ids import CONSORTIUM
from consortium.domain.partner import Partner, Person, Role, Site
from consortium.errors import ConfigError
from consortium.keys.documents import DocumentKind, SignedDocument, load_document, save_document, sign_document
from consortium.keys.files import write_secret
from consortium.keys.sealing import SealingKey
from consortium.keys.signing import SigningKey
from consortium.keys.tokens import check, issue
from consortium.keys.trust import SiteKeys, Trust
from consortium.local.paths import ClientFile, FederationDir, write_file

DAY_MS = 86_400_000
TOKEN_MS = 30 * DAY_MS
DOCUMENT_MS = 365 * DAY_MS
_RENEW_MS = 30 * DAY_MS
K = TypeVar("K", SigningKey, SealingKey)


@dataclass(frozen=True, slots=True, kw_only=True)
class Identities:
    """Everybody's private keys (they lie on one machine only in an embedded federation) and the public ones."""

    server: SigningKey
    partners: dict[str, SigningKey]
    people: dict[str, SigningKey]
    trust: Trust


def kept(cls: type[K], path: Path) -> K:
    """Return the key in `path`, made now if it is not there yet."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        cls.generate().save(path)
    return cls.load(path)


def kept_secret(path: Path) -> str:
    """Return the random secret (64 hex digits) in `path`, made now with mode 0600 if it is not there yet."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_secret(path, secrets.token_hex(32).encode())
    return path.read_text().strip()


def make_identities(
    directory: FederationDir, name: str, partners: Iterable[Partner], people: Iterable[Person], sites: Iterable[Site]
) -> Identities:
    """Make or load every key and write `trust.json`.

    The public keys of partners and sites that have left stay in it: what they signed stands in ledger and reports.
    """
    server = kept(SigningKey, directory.server / "server.key")
    roots = {p.id: kept(SigningKey, directory.partner_key(p.id)) for p in partners}
    persons = {p.id: kept(SigningKey, directory.person(p.id, ".key")) for p in people}
    site_keys = {
        site.id: SiteKeys(
            signing=kept(SigningKey, directory.site(site.id) / "signing.key").public,
            sealing=kept(SealingKey, directory.site(site.id) / "sealing.key").public,
        )
        for site in sites
    }
    before = _known(directory.trust_file)
    trust = Trust(
        log_name=f"consortium.local/{name}",
        log_key=server.public,
        server_key=server.public,
        partners=(before.partners if before else {}) | {partner: key.public for partner, key in roots.items()},
        sites=(before.sites if before else {}) | site_keys,
    )
    trust.save(directory.trust_file)
    return Identities(server=server, partners=roots, people=persons, trust=trust)


def _known(path: Path) -> Trust | None:
    """Return the keys known so far, if there are any."""
    try:
        return Trust.load(path) if path.exists() else None
    except ConfigError as fault:
        fix = "restore it from a copy; where nobody has left this federation it may be deleted, and is made anew"
        raise ConfigError(fault.what, where=fault.where, fix=fix) from fault


def issue_tokens(
    directory: FederationDir, identities: Identities, people: Iterable[Person], sites: Iterable[Site], now_ms: int
) -> None:
    """Write a fresh bearer token for every person and every site."""
    for person in people:
        token = issue(identities.server, person.id, person.roles, person.id[:2], now_ms + TOKEN_MS)
        write_file(directory.person(person.id, ".token"), token + "\n")
    for site in sites:
        token = issue(identities.server, site.id, (Role.SITE,), site.partner, now_ms + TOKEN_MS)
        write_file(directory.site(site.id) / "token", token + "\n")


def renew_tokens(directory: FederationDir, now_ms: int) -> bool:
    """Write fresh tokens once one of them holds for less than half of its time; return whether that was so.

    They say what those of the last start say, for whoever the federation had then.
    """
    people = ClientFile.load(directory.client_file).token_paths.values()
    sites = directory.federation()["sites"]
    server = SigningKey.load(directory.server / "server.key")
    paths = [*map(Path, people), *(directory.site(site) / "token" for site in sites)]
    tokens = {path: check(server.public, path.read_text().strip(), now_ms=0) for path in paths}
    if min(claims.expires_ms for claims in tokens.values()) >= now_ms + TOKEN_MS // 2:
        return False
    for path, claims in tokens.items():
        token = issue(server, claims.subject, claims.roles, claims.partner, now_ms + TOKEN_MS)
        write_file(path, token + "\n")
    return True


def roster_text(partner: str, people: Iterable[Person], keys: dict[str, SigningKey]) -> str:
    """Return a partner's roster as YAML, each person with its public key."""
    rows = [
        {"id": p.id, "name": p.name, "roles": [str(role) for role in p.roles], "signing_key": keys[p.id].public}
        for p in people
        if p.id.startswith(partner + "/")
    ]
    return yaml.safe_dump({"partner": partner, "people": rows}, sort_keys=False, allow_unicode=True)


def site_text(raw: str, site: Site, trust: Trust) -> str:
    """Return a site's file as its partner wrote it, with the site's public keys added at the end."""
    keys = trust.sites[site.id]
    return f"{raw.rstrip()}\nsigning_key: {keys.signing}\nsealing_key: {keys.sealing}\n"


def keep_document(
    directory: Path,
    trust: Trust,
    key: SigningKey,
    *,
    kind: DocumentKind,
    partner: str,
    file: str,
    text: str,
    now_ms: int,
) -> SignedDocument:
    """Return the document in `directory` if it still says `text`, else a newly signed one of the next version."""
    path = directory / (f"{kind}.json" if partner == CONSORTIUM else f"{kind}-{Path(file).stem}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    version = 1
    if path.exists():
        old = load_document(path, trust)
        if old.text == text and old.file == file and old.expires_ms > now_ms + _RENEW_MS:
            return old
        version = old.version + 1
    document = sign_document(
        key,
        kind=kind,
        partner=partner,
        version=version,
        issued_ms=now_ms,
        expires_ms=now_ms + DOCUMENT_MS,
        file=file,
        text=text,
    )
    save_document(document, path)
    return document
