"""Artifact classes, datasets and their shards, and crossings of a border."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from consortium.domain import ids


class ArtifactClass(StrEnum):
    """What a byte string is, for border rules. `raw` and `clean` text never cross."""

    RAW = "raw"
    CLEAN = "clean"
    TOKENS = "tokens"
    MINHASH = "minhash"
    STATISTIC = "statistic"
    TOKENIZER = "tokenizer"
    PSEUDO_GRADIENT = "pseudo_gradient"
    OUTER_STATE = "outer_state"
    WEIGHTS = "weights"
    METRIC = "metric"
    LOG = "log"
    CONTROL = "control"


NEVER_CROSS = (ArtifactClass.RAW, ArtifactClass.CLEAN)
"""Text: no policy of any partner can let these leave their territory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One content-addressed object of a dataset; `key` is relative to the site's private bucket, holds the digest."""

    key: str
    digest: str
    """`sha256:` and 64 hex digits of the object's bytes."""
    size_bytes: int
    documents: int
    tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A versioned set of shards at one home site; the id is never reused, the version of a name counts up.

    Who registers one signs its canonical JSON, and sites check that for as long as it is offered to them: a new field
    here would end every older signature, unless it is left out of the JSON while it has its default.
    """

    id: str
    name: str
    version: int
    site: str
    territory: str
    artifact_class: ArtifactClass
    languages: tuple[str, ...]
    licence: str
    source: str
    shards: tuple[Shard, ...]
    categories: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    """Ids of the datasets it was made from."""
    manifest_digest: str = ""
    """SHA-256 of the manifest of the stage that wrote it; empty for a registered collection."""
    held_out: bool = False
    """True for a split that no training job may read."""
    attributes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not ids.is_name(self.name):
            raise ValueError(f"dataset name {self.name!r}: lower-case letters, digits, '.', '_' and '-' only")
        if not ids.is_site(self.site):
            raise ValueError(f"dataset {self.name} names no site as its home: {self.site!r}")

    @property
    def partner(self) -> str:
        """The partner whose data it is: its home site's."""
        return ids.partner_of(self.site)

    @property
    def size_bytes(self) -> int:
        """Bytes over all shards."""
        return sum(shard.size_bytes for shard in self.shards)

    @property
    def documents(self) -> int:
        """Documents over all shards."""
        return sum(shard.documents for shard in self.shards)

    @property
    def tokens(self) -> int:
        """Tokens over all shards; 0 before tokenization."""
        return sum(shard.tokens for shard in self.shards)


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One sealed object in a sender's egress store, announced to its recipients."""

    job: str
    artifact_class: ArtifactClass
    name: str
    round: int
    sender: str
    """Site id."""
    recipients: tuple[str, ...]
    """Site ids."""
    digest: str
    """`sha256:` of the plaintext."""
    key: str
    """Object key in the sender's egress bucket; holds the envelope's digest."""
    size_bytes: int
    """Bytes of the sealed envelope."""
    signature: str = ""
    """The sender's Ed25519 signature over the canonical JSON of the other fields."""


class CrossingSide(StrEnum):
    """Which end of a border recorded a crossing."""

    RELEASE = "release"
    RECEIPT = "receipt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """One recorded passage of artifacts of one class to one recipient.

    A payload artifact is recorded one by one (`count` 1); calls of class `control` and `metric` are counted in batches.
    `recipient` and `sender` are site ids or `consortium` (server and tracking server).
    """

    sender: str
    recipient: str
    side: CrossingSide
    artifact_class: ArtifactClass
    size_bytes: int
    count: int
    digest: str
    """Plaintext digest; for a batch, empty."""
    job: str
    """Empty where the batch belongs to no single job."""
    at_ms: int
