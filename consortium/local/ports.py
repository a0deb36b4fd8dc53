"""Free loopback ports, chosen outside the range from which the kernel serves outgoing connections."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable
from pathlib import Path

import psutil

from consortium.errors import ConflictError

_LOWEST = 20_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def is_free(port: int) -> bool:
    """Tell whether a server could listen on loopback at `port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int, taken: Iterable[int] = ()) -> list[int]:
    """Return `count` distinct free ports that are not in `taken`. Raises ConflictError where there are too few.

    They lie below the ephemeral range, so that no outgoing connection of another program grabs one before its server
    has started, and are drawn at random, so that two federations that start at once do not choose the same.
    """
    highest = _ephemeral_start()
    used = set(taken)
    candidates = [port for port in range(_LOWEST, highest) if port not in used]
    random.SystemRandom().shuffle(candidates)
    found: list[int] = []
    for port in candidates:
        if len(found) == count:
            break
        if is_free(port):
            found.append(port)
    if len(found) == count:
        return found
    raise ConflictError(
        f"{count} free ports are needed, {len(found)} were found between {_LOWEST} and {highest}",
        fix="stop programs that listen on loopback, or other federations (consortium down)",
    )


def require_free(port: int, purpose: str) -> None:
    """Raise ConflictError naming the port, what it is for and who holds it, unless it is free."""
    if not is_free(port):
        raise ConflictError(
            f"port {port}, wanted for {purpose}, is in use",
            where=holder(port),
            fix="stop that program, or choose another port",
        )


def holder(port: int) -> str:
    """Return who listens on `port`, for people: `pid 4711 (python3)`."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == psutil.CONN_LISTEN:
                name = psutil.Process(connection.pid).name() if connection.pid else "unknown"
                return f"pid {connection.pid} ({name})"
    except psutil.Error:
        return f"127.0.0.1:{port}, held by a process of another user"
    return f"127.0.0.1:{port}"


def _ephemeral_start() -> int:
    try:
        start = int(_EPHEMERAL.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        start = 32_768
    return start if start >= _LOWEST + 1_000 else 65_000
