"""What a site's agent and gateway need to run: one JSON file per site, secrets by path only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from consortium.domain.codec import from_json
from consortium.domain.partner import Site
from consortium.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSettings:
    """An S3 endpoint and bucket; the secret key stands alone in the file `secret_path` (mode 0600)."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    endpoint: str
    bucket: str
    access_key: str
    secret_path: str

    def secret(self) -> str:
        """Read the secret key."""
        return Path(self.secret_path).read_text().strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSettings:
    """Settings of one site's two processes (`python -m consortium.site.agent|gateway --config FILE`)."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    site: Site
    home: str
    """The site's own directory; `site.db` (outbox, legs, leg tokens) lives here."""
    server_url: str
    """The consortium's server; only the gateway calls it."""
    mlflow_url: str
    """The consortium's tracking server; only the gateway calls it."""
    gateway_url: str
    """Where the agent and the site's legs reach the gateway."""
    gateway_port: int
    gateway_host: str = "127.0.0.1"
    """The address the gateway listens on: loopback, or one of the site's own network where legs run on other nodes."""
    token_path: str
    """Bearer token of role `site` for the server."""
    signing_key_path: str
    sealing_key_path: str
    trust_path: str
    """Public keys the partner pinned: `consortium.keys.trust.Trust` as JSON."""
    documents_dir: str
    """`consortium.keys.documents` files: the partner's own signed policy, everybody's signed rosters and site files."""
    ray_dashboard_url: str
    """Where Ray's Jobs API listens (`http://127.0.0.1:PORT`)."""
    ray_token_path: str
    ray_node_label: str = ""
    """The label in which each Ray node carries its id among the site's nodes (`ray start --labels=NAME=ID`): programs
    of legs start on nodes of their leg. Empty: all start on the head."""
    private_store: StoreSettings
    egress_store: StoreSettings
    """Own egress store, writable."""
    peer_egress: dict[str, StoreSettings]
    """Other sites' egress stores, readable; by site id."""
    jobs_dir: str
    """The programs this partner installed (`clean.py`, …)."""
    python: str = ""
    """The interpreter that starts the programs on the cluster's nodes; empty: the one that runs the agent."""
    poll_ms: int = 500
    max_skew_ms: int = 2_000

    @classmethod
    def load(cls, path: str | Path) -> SiteSettings:
        """Read the file; raises ConfigError naming the file and the offending key."""
        return from_json(cls, _read(path), where=str(path))


def _read(path: str | Path) -> object:
    try:
        return json.loads(Path(path).read_text())
    except OSError as fault:
        raise ConfigError(f"cannot read the settings: {fault.strerror}", where=str(path)) from fault
    except json.JSONDecodeError as fault:
        raise ConfigError(f"not valid JSON: {fault.msg}", where=f"{path}:{fault.lineno}") from fault
