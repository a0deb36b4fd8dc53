"""Readiness: how the supervisor sees that a child does its work."""

from __future__ import annotations

import http.client
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpProbe:
    """An HTTP server on loopback answers `path` with one of `statuses` (any below 500 where empty)."""

    port: int
    path: str = "/"
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    statuses: tuple[int, ...] = ()
    timeout_s: float = 2.0

    def ready(self) -> bool:
        """Ask once."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout_s)
        try:
            connection.request("GET", self.path, headers=self.headers)
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        return status in self.statuses if self.statuses else status < 500
