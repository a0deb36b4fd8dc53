"""Building the directory of an embedded federation: identities, documents, stores, ports, settings, `client.json`.

Idempotent: keys, state and stores that are there stay; what follows from configs, ports and the clock is written anew.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from consortium.config import Dirs, FederationConfig, load_federation, parse_quota_text
from consortium.config.federation import ConfigFile
from consortium.domain.codec import to_json
from consortium.domain.ids import CONSORTIUM
from consortium.domain.partner import Person, Site
from consortium.errors import ConfigError
from consortium.keys.canonical import digest
from consortium.keys.code import code_digest
from consortium.keys.documents import DocumentKind, load_document
from consortium.keys.trust import Trust
from consortium.local.identities import (
    Identities,
    issue_tokens,
    keep_document,
    kept_secret,
    make_identities,
    roster_text,
    site_text,
)
from consortium.local.paths import FederationDir, write_file, write_json
from consortium.local.ports import free_ports, is_free, require_free
from consortium.server.settings import ServerSettings
from consortium.site.settings import SiteSettings, StoreSettings

PACKAGE = Path(__file__).resolve().parents[1]
CENTRAL_PORTS = ("server", "mlflow")
SITE_PORTS = (
    "gateway", "private", "egress", "peers", "ray_gcs", "ray_dashboard", "ray_agent_http", "ray_agent_grpc",
    "ray_metrics", "ray_runtime_env", "ray_client", "ray_autoscaler_metrics", "ray_dashboard_metrics",
)  # fmt: skip
_TEMP_PREFIX = "cs-"
_LONGEST_TEMP = 24
"""Ray's socket paths below its temp dir must stay under 108 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A federation directory ready to be supervised."""

    directory: FederationDir
    config: FederationConfig
    federation: dict[str, Any]


def prepare(directory: FederationDir, dirs: Dirs, *, now_ms: int, server_port: int | None = None) -> Prepared:
    """Build or refresh the directory. Raises ConfigError for bad configs, ConflictError for a port in use."""
    config = load_federation(dirs.configs, dirs.clusters)
    old = directory.federation() if directory.federation_file.exists() else {}
    directory.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in ("run", "logs", "reports", "mlflow", "server/ledger", "documents"):
        (directory.root / name).mkdir(parents=True, exist_ok=True)
    people = tuple(Person(id=p.id, name=p.name, roles=p.roles, signing_key="") for p in config.people)
    identities = make_identities(directory, directory.name, config.partners, people, config.sites)
    issue_tokens(directory, identities, people, config.sites, now_ms)
    _sign_documents(directory, config, people, identities, now_ms)
    ports = _ports(config, old.get("ports", {}), server_port)
    jobs = PACKAGE.parent / "jobs"
    federation = _federation(directory, config, ports, old, now_ms)
    write_json(directory.federation_file, federation, 0o644)
    write_json(directory.server / "config.json", _server_settings(directory, config, federation, jobs))
    for site in config.sites:
        keys = identities.trust.sites[site.id]
        settings = _site_settings(directory, site, federation, jobs, (keys.signing, keys.sealing))
        write_json(directory.site(site.id) / "config.json", to_json(settings))
    write_json(directory.client_file, _client(directory, people, federation))
    return Prepared(directory=directory, config=config, federation=federation)


def drop_ray_tmp(directory: FederationDir) -> None:
    """Delete Ray's temp dir of a federation that does not run: its logs, sockets and spilled objects."""
    if not directory.federation_file.exists():
        return
    path = Path(str(directory.federation().get("ray_tmp", "")))
    if path.name.startswith(_TEMP_PREFIX) and path.is_dir():
        shutil.rmtree(path, ignore_errors=True)


def _sign_documents(
    directory: FederationDir, config: FederationConfig, people: tuple[Person, ...], identities: Identities, now_ms: int
) -> None:
    """Sign every partner's files for the server, and give each site its own copies."""
    sites, trust = {site.id: site for site in config.sites}, identities.trust
    texts: list[tuple[DocumentKind, str, str, str]] = []
    for file in config.files:
        if file.kind == "policy":
            texts.append((DocumentKind.POLICY, file.id, file.file, file.text))
        elif file.kind == "partner":
            texts.append((DocumentKind.ROSTER, file.id, file.file, roster_text(file.id, people, identities.people)))
        elif file.kind == "site":
            text = site_text(file.text, sites[file.id], identities.trust)
            texts.append((DocumentKind.SITE, sites[file.id].partner, file.file, text))
        elif file.kind == "quota":
            agreed = file
            texts.append((DocumentKind.QUOTA, CONSORTIUM, file.file, _quota_text(directory, file, config.sites, trust)))
    _drop_stale(directory.documents, texts)
    for kind, partner, name, text in texts:
        key = identities.server if partner == CONSORTIUM else identities.partners[partner]
        keep_document(
            directory.documents, identities.trust, key, kind=kind, partner=partner, file=name, text=text, now_ms=now_ms
        )
    write_file(_quota_mark(directory), digest(agreed.text.encode()) + "\n")
    for site in config.sites:
        _copy_documents(directory, site, texts)


def _quota_text(directory: FederationDir, file: ConfigFile, sites: tuple[Site, ...], trust: Trust) -> str:
    """Return the quotas to sign: what admins applied stays in force until the file in `configs/` changes again."""
    path = directory.documents / _document_name(DocumentKind.QUOTA, CONSORTIUM, file.file)
    mark = _quota_mark(directory)
    if not path.exists() or not mark.exists() or mark.read_text().strip() != digest(file.text.encode()):
        return file.text
    text = load_document(path, trust).text
    try:
        parse_quota_text(text, file.file, sites)
    except ConfigError as fault:
        what = f"the quotas that were applied do not fit the sites any more: {fault.what}"
        raise ConfigError(what, where=str(path), fix=f"delete it to go back to {file.file}") from fault
    return text


def _quota_mark(directory: FederationDir) -> Path:
    """Where the digest of the quota file stands as it was in `configs/` at the last start."""
    return directory.server / "quota.sha256"


def _drop_stale(folder: Path, texts: list[tuple[DocumentKind, str, str, str]]) -> None:
    wanted = {_document_name(kind, partner, file) for kind, partner, file, _ in texts}
    for path in folder.glob("*.json"):
        if path.name not in wanted:
            path.unlink()


def _document_name(kind: DocumentKind, partner: str, file: str) -> str:
    return f"{kind}.json" if partner == CONSORTIUM else f"{kind}-{Path(file).stem}.json"


def _copy_documents(directory: FederationDir, site: Site, texts: list[tuple[DocumentKind, str, str, str]]) -> None:
    """A site keeps its own partner's policy, and everybody's rosters and site files."""
    folder = directory.site(site.id) / "documents"
    folder.mkdir(parents=True, exist_ok=True)
    kept = [
        entry
        for entry in texts
        if entry[0] in (DocumentKind.ROSTER, DocumentKind.SITE)
        or (entry[0] is DocumentKind.POLICY and entry[1] == site.partner)
    ]
    _drop_stale(folder, kept)
    for kind, partner, file, _ in kept:
        name = _document_name(kind, partner, file)
        draft = folder / f".{name}"
        shutil.copyfile(directory.documents / name, draft)
        draft.replace(folder / name)


def _ports(config: FederationConfig, old: dict[str, int], server_port: int | None) -> dict[str, int]:
    """Return a port per purpose: last time's where it is free, so that links in MLflow stay true."""
    names = [*CENTRAL_PORTS, *(f"{site.id}/{name}" for site in config.sites for name in SITE_PORTS)]
    ports = {name: old[name] for name in names if name in old and is_free(old[name])}
    if server_port is not None:
        require_free(server_port, "the server")
        ports["server"] = server_port
    missing = [name for name in names if name not in ports]
    ports |= dict(zip(missing, free_ports(len(missing), ports.values()), strict=True))
    return ports


def _federation(
    directory: FederationDir, config: FederationConfig, ports: dict[str, int], old: dict[str, Any], now_ms: int
) -> dict[str, Any]:
    def url(name: str) -> str:
        return f"http://127.0.0.1:{ports[name]}"

    return {
        "id": old.get("id") or secrets.token_hex(8),
        "name": directory.name,
        "started_ms": now_ms,
        "server_url": url("server"),
        "mlflow_url": url("mlflow"),
        "ray_tmp": _ray_tmp(str(old.get("ray_tmp", ""))),
        "ports": ports,
        "sites": {
            site.id: {
                "partner": site.partner,
                "territory": site.territory,
                "flavor": site.flavor.id,
                "gpus": site.gpus,
                "gpu_resource": site.gpu_resource,
                "gateway_url": url(f"{site.id}/gateway"),
                "ray_dashboard_url": url(f"{site.id}/ray_dashboard"),
                "private_endpoint": url(f"{site.id}/private"),
                "egress_endpoint": url(f"{site.id}/egress"),
                "peers_endpoint": url(f"{site.id}/peers"),
            }
            for site in config.sites
        },
    }


def _ray_tmp(old: str) -> str:
    """Return a short directory of our own for Ray's sockets and logs."""
    if old and Path(old).is_dir() and Path(old).stat().st_uid == os.getuid():
        return old
    parent = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix=_TEMP_PREFIX, dir=parent if len(parent) < _LONGEST_TEMP else "/tmp")  # noqa: S108  mkdtemp makes it private


def _server_settings(
    directory: FederationDir, config: FederationConfig, federation: dict[str, Any], jobs: Path
) -> dict[str, Any]:
    tuning = config.server
    settings = ServerSettings(
        host="127.0.0.1",
        port=federation["ports"]["server"],
        database_url=f"sqlite:///{directory.server / 'state.db'}",
        ledger_dir=str(directory.server / "ledger"),
        signing_key_path=str(directory.server / "server.key"),
        trust_path=str(directory.trust_file),
        documents_dir=str(directory.documents),
        mlflow_url=federation["mlflow_url"],
        code_digest=code_digest(PACKAGE, jobs),
        lease_ms=tuning.lease_ms,
        max_skew_ms=tuning.max_skew_ms,
        site_lost_ms=tuning.site_lost_ms,
        cycle_ms=tuning.cycle_ms,
        round_grace_ms=tuning.round_grace_ms,
        scheduler=tuning.scheduler,
        retry=tuning.retry,
    )
    data: dict[str, Any] = to_json(settings)
    return data


def _site_settings(
    directory: FederationDir, site: Site, federation: dict[str, Any], jobs: Path, keys: tuple[str, str]
) -> SiteSettings:
    here, mine = directory.site(site.id), federation["sites"][site.id]
    for store in ("private/private", "egress/egress"):
        (here / store).mkdir(parents=True, exist_ok=True)
    kept_secret(here / "ray.token")
    peers = {
        name: _store(directory, name, "peers", row["peers_endpoint"], "egress")
        for name, row in federation["sites"].items()
        if name != site.id
    }
    return SiteSettings(
        site=replace(site, signing_key=keys[0], sealing_key=keys[1]),
        home=str(here),
        server_url=federation["server_url"],
        mlflow_url=federation["mlflow_url"],
        gateway_url=mine["gateway_url"],
        gateway_port=federation["ports"][f"{site.id}/gateway"],
        token_path=str(here / "token"),
        signing_key_path=str(here / "signing.key"),
        sealing_key_path=str(here / "sealing.key"),
        trust_path=str(directory.trust_file),
        documents_dir=str(here / "documents"),
        ray_dashboard_url=mine["ray_dashboard_url"],
        ray_token_path=str(here / "ray.token"),
        private_store=_store(directory, site.id, "private", mine["private_endpoint"], "private"),
        egress_store=_store(directory, site.id, "egress", mine["egress_endpoint"], "egress"),
        peer_egress=peers,
        jobs_dir=str(jobs),
    )


def _store(directory: FederationDir, site: str, store: str, endpoint: str, bucket: str) -> StoreSettings:
    """Return the settings of one of a site's three S3 servers, making its secret if need be."""
    secret = directory.site(site) / f"{store}.secret"
    kept_secret(secret)
    return StoreSettings(endpoint=endpoint, bucket=bucket, access_key=f"{site}-{store}", secret_path=str(secret))


def _client(directory: FederationDir, people: tuple[Person, ...], federation: dict[str, Any]) -> dict[str, Any]:
    def paths(suffix: str) -> dict[str, str]:
        return {person.id: str(directory.person(person.id, suffix)) for person in people}

    engineers = [person.id for person in people if "engineer" in person.roles]
    return {
        "server_url": federation["server_url"],
        "token_paths": paths(".token"),
        "key_paths": paths(".key"),
        "roles": {person.id: [str(role) for role in person.roles] for person in people},
        "default_person": sorted(engineers or [person.id for person in people])[0],
    }
