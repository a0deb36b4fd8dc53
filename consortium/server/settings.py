"""What the server needs to run: one JSON file, secrets by path only."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from consortium.config import ServerTuning
from consortium.config.tuning import RetryTuning, SchedulerTuning
from consortium.domain.codec import from_json
from consortium.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Settings of `python -m consortium.server --config FILE`."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    host: str
    port: int
    database_url: str
    """SQLAlchemy URL: `sqlite:////path/state.db` or `postgresql+psycopg://…`."""
    ledger_dir: str
    signing_key_path: str
    """Signs log checkpoints, certificates, editions and locally made bearer tokens."""
    trust_path: str
    documents_dir: str
    """Signed policies, rosters, sites and quotas of all partners."""
    mlflow_url: str
    code_digest: str
    lease_ms: int = 15_000
    """How long a leg may run after its site's last contact with the server."""
    max_skew_ms: int = 2_000
    site_lost_ms: int = 20_000
    """How long a site is silent, or calls itself unhealthy, until it counts as lost."""
    cycle_ms: int = 250
    round_grace_ms: int = 60_000
    """How long a round waits for its last commits once a quorum has committed."""
    scheduler: SchedulerTuning = field(default_factory=SchedulerTuning)
    retry: RetryTuning = field(default_factory=RetryTuning)

    def __post_init__(self) -> None:
        ServerTuning(  # has the bounds
            lease_ms=self.lease_ms,
            max_skew_ms=self.max_skew_ms,
            site_lost_ms=self.site_lost_ms,
            cycle_ms=self.cycle_ms,
            round_grace_ms=self.round_grace_ms,
        )

    @classmethod
    def load(cls, path: str | Path) -> ServerSettings:
        """Read the file; raises ConfigError naming the file and the offending key."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as fault:
            raise ConfigError(f"cannot read the settings: {fault.strerror}", where=str(path)) from fault
        except json.JSONDecodeError as fault:
            raise ConfigError(f"not valid JSON: {fault.msg}", where=f"{path}:{fault.lineno}") from fault
        except (ValueError, RecursionError) as fault:  # bytes that are no UTF-8, endless digits or nesting
            raise ConfigError(f"not valid JSON: {fault}", where=str(path)) from fault
        return from_json(cls, data, where=str(path))
