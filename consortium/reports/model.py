"""What a contribution report says. Units stand in the names; what is not known is null, never zero."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, ClassVar

from consortium.accounting.leases import AGREE_PERCENT, AGREE_SLACK_MS
from consortium.accounting.usage import Repeated
from consortium.domain.data import ArtifactClass
from consortium.domain.ids import is_partner, is_site, partner_of
from consortium.domain.records import Evidence
from consortium.domain.units import is_decimal
from consortium.keys.trust import Trust

FORMAT = "consortium-report/5"
_STRICT = {"extra": "forbid"}
_LEAST, _MOST = Fraction(1, 1000), Fraction(1000)
"""Between these lies every reference factor; a site's file may state no other."""

_LIMITS = (
    "Delivered and consumed GPU time is metered by the site. Where the server's receipt times cover the same leases, "
    "both books stand side by side; they count as cross-checked where they differ, in their sum and in the leases of "
    f"all but {AGREE_PERCENT} % of the time, by at most {AGREE_PERCENT} % of the site's figure plus {AGREE_SLACK_MS} "
    "ms per GPU that the server leased.",
    "A crossing is cross-checked where sender and recipient, of two partners, recorded the same artifacts. Batches of "
    "metric and control calls are declared by their sender.",
    "Tokens, steps and FLOPs of a round are the site's own word, weighed by its peers; they are re-executed where an "
    "auditor of another partner had the inner steps done again at the site and signed the result. A site that says so "
    "of itself is named, and its word founds nothing. FLOPs are the model's arithmetic, not the hardware's.",
    "A share of the fall in held-out loss is an apportionment by weight, not a measurement of what a site's data "
    "brought; the loss itself is declared by the site that measured it. Rounds that did not close count nowhere.",
    "What a job was to do, from which FLOPs follow, who registered a dataset and what a job measured stand in the "
    "server's records: the signatures of submitter, registrar and site are not checked here.",
    "That a round's sites came to the same outer state rests on the signatures of sites with most of the votes; who "
    "published something else the server could leave out, and how a dispute was settled is its word. A re-execution "
    "that came out otherwise undoes a grade only where it is among the leaves: the server may leave it out, as it may "
    "a newer roster or site file.",
    "Datasets, licences and languages are declared by the partner whose site it is, and so are reference factors where "
    "the site's signed file is among the leaves; otherwise the factor is what the server says.",
    "Of an erased leaf only its 32 bytes are proven: which record it was, and under which order it was erased, is the "
    "server's word.",
    "What an origin recorded in the period after the last record shown here does not show; compare `completeness` with "
    "the origin's own count.",
)
LIMITS = (
    *_LIMITS,
    "Usage and crossings of other partners' sites for which there is no room are left out whole, site by site, the "
    "largest first; `left_out` names them. GPU time consumed there is in the server's book alone, and in no sum of the "
    "sites' book; crossings there are in the partner's own records alone. How many were left out is the server's word.",
)
LIMITS_OF = {FORMAT: LIMITS, "consortium-report/4": _LIMITS}
"""By format, the limits that a report states. Those of an earlier format left nothing out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """A site as its partner declares it; `reference_factor` turns its GPU-hours into reference GPU-hours."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    id: str
    partner: str
    territory: str
    flavor: str
    reference_factor: str
    factor_version: str

    def __post_init__(self) -> None:
        if not is_site(self.id) or self.partner != partner_of(self.id) or not is_partner(self.territory):
            raise ValueError(f"no site of a partner in a territory: {self.id!r}, {self.partner!r}, {self.territory!r}")
        if not is_decimal(self.reference_factor) or not _LEAST <= Fraction(self.reference_factor) <= _MOST:
            raise ValueError(f"the reference factor of {self.id} is no decimal number from {_LEAST} to {_MOST}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTime:
    """GPU time in both books: the site's metering (`gpu_ms`) and the server's receipts (`server_gpu_ms`)."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    gpu_ms: int | None
    gpu_hours: str | None
    reference_gpu_hours: str | None
    server_gpu_ms: int | None
    difference_gpu_ms: int | None
    leases: int
    leases_without_receipt: int
    gpu_ms_without_receipt: int
    """Of `gpu_ms`, what the site metered in leases that the server has no receipt for."""
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRow:
    """GPU time of one account at one site."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    site: str
    flavor: str
    account: str
    time: GpuTime


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTable:
    """Rows and their sum."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    rows: tuple[GpuRow, ...]
    total: GpuTime


@dataclass(frozen=True, slots=True, kw_only=True)
class BorderRow:
    """What passed over one border, of one class: the sender's record against the recipient's."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    sender: str
    recipient: str
    artifact_class: ArtifactClass
    released_count: int | None
    released_bytes: int | None
    received_count: int | None
    received_bytes: int | None
    matched_count: int
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRow:
    """A site's part in one closed round: its commit, and the weight the certificate gave it."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    job: str
    round: int
    site: str
    accepted: bool
    refused_for: tuple[str, ...]
    """Why judges refused it, each code once; `left out` where a ruling or quarantine did."""
    tokens: int
    steps: int
    flops: int | None
    """Tokens times 6 N + 12 L H K T; null where the model's shape is not known, as of a plugged-in one."""
    weight: str | None
    """Hex float, as certified; null where the contribution was not accepted."""
    weight_percent: str | None
    clip: str | None
    """Hex float: what it was scaled by before it was applied."""
    bytes_sent: int | None
    """What it took across borders, each recipient counted; null where it is not on record whole, as one artifact."""
    bytes_received: int | None
    loss_share_nats: str | None
    """The round's fall of held-out loss, nats per token, shared out by weight; null where no job measured it."""
    accepting_judges: tuple[str, ...]
    outer_digest: str | None
    evidence: Evidence
    """Of acceptance and weight."""
    re_executed_by: tuple[str, ...]
    """Who did its inner steps again with the same result: the site itself (`fr-1`), or under an auditor's eyes
    (`uy/carmen at fr-1`)."""
    re_execution_differed: tuple[str, ...]
    work_evidence: Evidence
    """Of tokens, steps and FLOPs: re-executed only where an auditor of another partner signed the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRow:
    """A partner's part in one training in the period, and what the whole model took so far."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    job: str
    rounds: int
    """In how many rounds something of the partner was accepted."""
    refused: int
    tokens: int
    accepted_tokens: int
    re_executed_tokens: int
    flops: int | None
    weight: str
    """Sum over rounds of the weights as applied; of all partners together at most one a round."""
    bytes_sent: int | None
    bytes_received: int | None
    loss_share_nats: str | None
    model_flops: int | None
    """Of all partners in all closed rounds so far; null where a round or the model's shape is not known."""
    lineage: tuple[str, ...]
    """The trainings it goes back to, oldest first."""
    lineage_flops: int | None
    """With those of the lineage; null where one of them is not known."""
    general_purpose: bool | None
    """Above 10^23; null where what is known is not, and something is unknown."""
    systemic_risk: bool | None
    """Above 10^25."""
    evidence: Evidence
    """Of tokens and FLOPs in the period."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRow:
    """A dataset of the partner that entered the ledger in the period."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    id: str
    name: str
    version: int
    site: str
    artifact_class: ArtifactClass
    languages: tuple[str, ...]
    licence: str
    documents: int
    tokens: int
    size_bytes: int
    manifest_digest: str | None
    evidence: Evidence


@dataclass(frozen=True, slots=True, kw_only=True)
class Completeness:
    """All records of one family by one origin in the period, and the sums the origin signed in its last one."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    origin: str
    family: str
    records: int
    last_seq: int
    cumulative: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Every figure of a report; each follows from the report's leaves."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    delivered: GpuTable
    consumed: GpuTable
    crossings: tuple[BorderRow, ...]
    rounds: tuple[RoundRow, ...]
    training: tuple[TrainingRow, ...]
    datasets: tuple[DatasetRow, ...]
    not_billed: tuple[Repeated, ...]
    """Usage metered twice, or beyond its month: in the ledger, but not counted."""
    completeness: tuple[Completeness, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One leaf of the log with its proof: SHA-256(salt || canonical payload) stands at `index`."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    index: int
    record_id: str
    salt: str
    payload: dict[str, Any]
    proof: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """A leaf of an origin concerned whose payload was erased under an order."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    index: int
    record_id: str
    data: str
    order: str
    proof: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Records of one family that another partner's site wrote in the period, and a report has no room for."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    origin: str
    family: str
    records: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The canonical record. The server signs the canonical JSON of everything but `signature`."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    format: str
    partner: str
    period: str
    made_ms: int
    sites: tuple[SiteFacts, ...]
    figures: Figures
    limits: tuple[str, ...]
    leaves: tuple[Leaf, ...]
    erased: tuple[Erased, ...]
    checkpoint: str
    """The signed note of the log that every leaf is proven against."""
    trust: Trust
    fingerprints: dict[str, str]
    """Labels of the keys in `trust`. People compare what `audit verify` prints, which is twice as long."""
    left_out: tuple[LeftOut, ...] = ()
    signature: str = field(default="")
