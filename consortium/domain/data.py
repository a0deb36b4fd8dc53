"""Artifact classes, datasets and their shards, and crossings of a border."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
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
    OPTIMIZER_STATE = "optimizer_state"
    OUTER_STATE = "outer_state"
    WEIGHTS = "weights"
    METRIC = "metric"
    LOG = "log"
    CONTROL = "control"


CONTRIBUTIONS = (ArtifactClass.PSEUDO_GRADIENT, ArtifactClass.OPTIMIZER_STATE)
"""What sites contribute to a round: a pseudo-gradient, alone or together with the inner optimiser's state."""
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
class Description:
    """Where a dataset's right to exist comes from. Dates are ISO 8601 days (`2026-11-22`); empty where nobody said."""

    __left_out__ = frozenset({"legal_basis", "collected_from", "collected_until", "contributors", "consent_until"})

    legal_basis: tuple[str, ...] = ()
    """Laws, licences or consents it rests on, in the registrar's words."""
    collected_from: str = ""
    collected_until: str = ""
    """The last day of collection."""
    contributors: tuple[str, ...] = ()
    """Who gave it: institutions, not people (it is read by every partner)."""
    consent_until: str = ""
    """The last day, in UTC, on which it may be read; empty: no end."""

    def __post_init__(self) -> None:
        for name in ("collected_from", "collected_until", "consent_until"):
            check_day(name, getattr(self, name))
        if self.collected_from and self.collected_until and self.collected_from > self.collected_until:
            raise ValueError(f"collected_from {self.collected_from} lies after collected_until {self.collected_until}")
        for name in ("legal_basis", "contributors"):
            texts: tuple[str, ...] = getattr(self, name)
            if any(not text.strip() or len(text) > _MAX_WORDS or not text.isprintable() for text in texts):
                raise ValueError(f"{name}: 1 to {_MAX_WORDS} printable characters each")

    def consent_ended(self, now_ms: int) -> bool:
        """Tell whether the last day of consent is over."""
        if not self.consent_until:
            return False
        end = datetime.combine(date.fromisoformat(self.consent_until), datetime.min.time(), UTC) + timedelta(days=1)
        return now_ms >= int(end.timestamp()) * 1000


_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
_MAX_WORDS = 500


def check_day(name: str, text: str) -> None:
    """Raise ValueError unless `text` is empty or a day of the years 1000 to 9998 as `2026-11-22`."""
    try:
        good = not text or (_DAY.fullmatch(text) and 1000 <= date.fromisoformat(text).year <= 9998)
    except ValueError:
        good = False
    if not good:
        raise ValueError(f"{name} must be a day such as 2026-11-22, got {text[:40]!r}")


CONSENT_FIX = "leave it out; where its consent was renewed, register it again with the new --consent-until"


def inherited(parents: Iterable[Description]) -> Description:
    """Return what holds of a dataset made of all of `parents`: consent ends with the first, the rest adds up.

    Where nobody said when one of them was collected, the period of the others would be wrong, and is left empty.
    """
    known = list(parents)
    begins, ends = [item.collected_from for item in known], [item.collected_until for item in known]
    return Description(
        legal_basis=tuple(sorted({text for item in known for text in item.legal_basis})),
        collected_from=min(begins) if begins and all(begins) else "",
        collected_until=max(ends) if ends and all(ends) else "",
        contributors=tuple(sorted({text for item in known for text in item.contributors})),
        consent_until=min((item.consent_until for item in known if item.consent_until), default=""),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A versioned set of shards at one home site; the id is never reused, the version of a name counts up.

    Who registers one signs its canonical JSON, and sites check that for as long as it is offered to them: a new field
    here would end every older signature, unless it is left out of the JSON while it has its default.
    """

    __left_out__ = frozenset({"about"})

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
    about: Description = field(default_factory=Description)

    def __post_init__(self) -> None:
        if not ids.is_name(self.name):
            raise ValueError(f"dataset name {self.name!r}: lower-case letters, digits, '.', '_' and '-' only")
        if not ids.is_site(self.site):
            raise ValueError(f"dataset {self.name} names no site as its home: {self.site!r}")

    def consent_over(self, now_ms: int) -> str:
        """Return, for people, that the consent to use it has ended and when; empty while it has not."""
        if not self.about.consent_ended(now_ms):
            return ""
        return f"the consent to use {self.name}@{self.version} ended on {self.about.consent_until}"

    @property
    def names(self) -> tuple[str, str, str]:
        """What params of a job may call it: its name, `name@version`, its id."""
        return self.name, f"{self.name}@{self.version}", self.id

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


CLEAN_SUFFIX = "-clean"
TOKENS_SUFFIX = "-tokens"
HELD_OUT_SUFFIX = "-tokens-heldout"


def base_name(name: str) -> str:
    """Return a dataset's name without the mark of the stage that cleaned it: outputs are named after it."""
    return name.removesuffix(CLEAN_SUFFIX)


def name_family(name: str) -> str:
    """Return a dataset's name without any marks of stages; all names of a family belong to one partner."""
    for suffix in (HELD_OUT_SUFFIX, TOKENS_SUFFIX, CLEAN_SUFFIX):
        if name.endswith(suffix) and name != suffix:
            return name_family(name.removesuffix(suffix))
    return name


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
