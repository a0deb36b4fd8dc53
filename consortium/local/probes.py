"""Readiness: how the supervisor sees that a child does its work."""

from __future__ import annotations

import http.client
import socket
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


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenProbe:
    """Somebody listens on each of these ports of loopback, however busy or stopped: the kernel answers for them."""

    ports: tuple[int, ...]

    def ready(self) -> bool:
        """Ask once."""
        return all(self._listens(port) for port in self.ports)

    @staticmethod
    def _listens(port: int) -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=2.0).close()
        except TimeoutError:
            return True
        except OSError:
            return False
        return True
