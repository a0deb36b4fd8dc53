"""What training needs from the world outside its process. `consortium.client.leg.LegSession` is the real one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from consortium.domain.data import Artifact, ArtifactClass, Dataset
from consortium.domain.protocol import LegContext
from consortium.domain.training import Round

if TYPE_CHECKING:
    from consortium.storage.objects import ObjectStore


class Exchange(Protocol):
    """A running leg's line to its gateway. Every call may be repeated; calls outlast a short absence of the far end."""

    @property
    def context(self) -> LegContext:
        """What the leg is to do."""

    @property
    def tracking_uri(self) -> str:
        """Base URL of the MLflow API; empty where nothing is tracked."""

    token: str
    """The leg's bearer token."""

    def store(self) -> ObjectStore:
        """Return the site's private store."""

    def progress(self, **numbers: Any) -> None:
        """Tell people where the leg stands."""

    def stopping(self) -> bool:
        """Whether the leg is to keep its progress and end soon, because its GPUs are taken back."""

    def send(
        self,
        artifact_class: ArtifactClass | str,
        name: str,
        data: bytes,
        *,
        round: int = 0,
        recipients: Iterable[str] | None = None,
    ) -> Artifact:
        """Release `data` to other sites, by default to all peers."""

    def inbox(self, round: int | None = None) -> list[Artifact]:
        """Return the artifacts of this job, or of one round, addressed to this site, oldest first."""

    def receive_into(self, artifact: Artifact, file: BinaryIO) -> int:
        """Write an artifact's plaintext to a file, its sender's signature and digest checked; return its bytes."""

    def commit(
        self, round: int, *, tokens: int, steps: int, digest: str, norm: str, loss: str, train_ms: int = 0
    ) -> None:
        """Commit to a round. Raises ConflictError where the round no longer takes commits."""

    def verdicts(self, round: int, verdicts: Sequence[Mapping[str, Any]]) -> None:
        """Post this leg's verdicts on a round's commits."""

    def round(self, number: int) -> Round:
        """Return a round. Raises NotFoundError where it does not exist yet."""

    def agree(self, topic: str, digest: str) -> None:
        """Publish this site's digest for a topic."""

    def agreements(self, topic: str) -> dict[str, str]:
        """Return the digests published for a topic, by site."""

    def result(
        self,
        *,
        outputs: Sequence[Dataset] = (),
        manifest_digest: str = "",
        manifest: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Leave the leg's result with the site."""
