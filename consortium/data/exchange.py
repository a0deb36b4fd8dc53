"""What the federated stages need of the way to other sites."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from consortium.domain.data import ArtifactClass

PATIENCE_S = 7 * 86_400.0
"""How long a leg waits for others, which may have far more to do: the job's walltime ends it before."""


class Exchange(Protocol):
    """A leg's gateway; `consortium.client.leg.LegSession` is the real one."""

    def send(
        self,
        artifact_class: ArtifactClass | str,
        name: str,
        data: bytes,
        *,
        round: int = 0,
        recipients: Iterable[str] | None = None,
    ) -> Any:
        """Release data to the peers."""

    def wait_for(self, name: str, round: int, senders: Iterable[str], timeout_s: float) -> dict[str, bytes]:
        """Return what each sender released under a name."""

    def wait_agreement(self, topic: str, digest: str, timeout_s: float) -> None:
        """Publish a digest and wait until all peers published the same; VerificationError where one differs."""
