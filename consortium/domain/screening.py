"""How a federated training screens what its sites contribute: settings that every leg and auditor reads alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from consortium.domain.bounds import within


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenRule:
    """The gates of a round and how what passes them is combined. The defaults leave all but the basic checks off."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    aggregate: Literal["mean", "trimmed", "median"] = "mean"
    """Weighted mean; coordinate-wise trimmed mean or median (https://arxiv.org/abs/1803.01498)."""
    trim: float = 0.25
    """Share of the sites that a trimmed mean leaves out at either end of each coordinate."""
    clip: float = 0.0
    """Contributions are scaled down to this many times the running median norm; 0: never."""
    clip_window: int = 32
    """How many accepted norms of past rounds the running median is of."""
    cosine: float = -1.0
    """A contribution whose cosine to the outer momentum is below this is refused; -1: never.

    With it, one whose optimiser's state, where that is shared, points away from its own steps is refused too.
    """
    loss_rise: float = 0.0
    """A contribution that raises the judge's loss, on text it has not trained on yet, by more than this share of what
    it is without it is refused; 0: never. A share, because nats per token grow with the length of tokens."""
    loss_sequences: int = 16
    """Sequences that loss is measured on."""
    quarantine: int = 0
    """A site refused this many rounds in a row for what it sent is left out until an admin readmits it; 0: never."""

    def __post_init__(self) -> None:
        within(self, trim=(0, 0.49), clip=(0, 1_000), clip_window=(1, 4_096), cosine=(-1, 1), loss_rise=(0, 100))
        within(self, loss_sequences=(1, 65_536), quarantine=(0, 100_000))
