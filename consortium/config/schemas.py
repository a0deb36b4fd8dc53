"""What partner, site and server files may say."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import ClassVar

from consortium.config.tuning import RetryTuning, SchedulerTuning
from consortium.domain import ids
from consortium.domain.bounds import within
from consortium.domain.partner import Cotenancy, Flavor, Node, Partner, Role, Site
from consortium.domain.units import is_decimal

_STRICT: dict[str, str] = {"extra": "forbid"}
_GIB = 1 << 30


def decimal(name: str, text: str, low: str, high: str) -> None:
    """Raise ValueError unless `text` is a decimal number from `low` to `high`."""
    if not is_decimal(text):
        raise ValueError(f'{name} must be a decimal number in quotes, such as "0.5", got {text!r}')
    if not Fraction(low) <= Fraction(text) <= Fraction(high):
        raise ValueError(f"{name} must be {low} to {high}, got {text}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonConfig:
    """A person of a partner as its file names it; the key joins in the signed roster."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    id: str
    name: str
    roles: tuple[Role, ...]

    def __post_init__(self) -> None:
        partner, _, rest = self.id.partition("/")
        if not ids.is_partner(partner) or not ids.is_name(rest):
            raise ValueError(f"id {self.id!r} must be a partner and a name, such as fr/amelie")
        if not self.roles or Role.SITE in self.roles:
            raise ValueError(f"roles of {self.id} must be among engineer, admin and auditor")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartnerConfig:
    """A partner and its people."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    id: str
    name: str
    languages: tuple[str, ...]
    people: tuple[PersonConfig, ...]

    def __post_init__(self) -> None:
        Partner(id=self.id, name=self.name, languages=self.languages)
        for language in self.languages:
            if len(language) != 2 or not language.isascii() or not language.islower():
                raise ValueError(f"languages: {language!r} is not an ISO 639-1 code such as 'fr'")
        seen: set[str] = set()
        for person in self.people:
            if ids.partner_of(person.id) != self.id:
                raise ValueError(f"people: {person.id!r} is not a person of {self.id!r}")
            if person.id in seen:
                raise ValueError(f"people: {person.id!r} is listed twice")
            seen.add(person.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlavorConfig:
    """A GPU type as a site's file states it; TFLOP/s are dense BF16, decimals stand in quotes."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    id: str
    memory_gib: int
    peak_tflops: str
    measured_tflops: str
    board_power_w: int
    reference_factor: str
    factor_version: str

    def __post_init__(self) -> None:
        decimal("peak_tflops", self.peak_tflops, "0.1", "1000000")
        decimal("measured_tflops", self.measured_tflops, "0.1", "1000000")
        decimal("reference_factor", self.reference_factor, "0.001", "1000")
        if Fraction(self.measured_tflops) > Fraction(self.peak_tflops):
            raise ValueError(f"measured_tflops ({self.measured_tflops}) is above peak_tflops ({self.peak_tflops})")
        if not 1 <= self.memory_gib <= 10_000:
            raise ValueError(f"memory_gib must be 1 to 10,000, got {self.memory_gib}")
        if not 1 <= self.board_power_w <= 20_000:
            raise ValueError(f"board_power_w must be 1 to 20,000, got {self.board_power_w}")
        if not self.factor_version:
            raise ValueError("factor_version must not be empty")
        self.flavor()

    def flavor(self) -> Flavor:
        """Return the domain's flavor."""
        return Flavor(
            id=self.id,
            memory_bytes=self.memory_gib * _GIB,
            peak_tflops=self.peak_tflops,
            measured_tflops=self.measured_tflops,
            board_power_w=self.board_power_w,
            reference_factor=self.reference_factor,
            factor_version=self.factor_version,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkConfig:
    """The network to another site, as the partner states it."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    gbit_per_s: str
    rtt_ms: int

    def __post_init__(self) -> None:
        decimal("gbit_per_s", self.gbit_per_s, "0.001", "100000")
        if not 0 <= self.rtt_ms <= 60_000:
            raise ValueError(f"rtt_ms must be 0 to 60,000, got {self.rtt_ms}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteConfig:
    """A file in `clusters/`. The two keys are added when the partner signs it (base64 of the raw 32 bytes)."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    id: str
    partner: str
    territory: str
    flavor: FlavorConfig
    nodes: tuple[Node, ...]
    cotenancy: Cotenancy = Cotenancy.PARTNER
    gpu_resource: str = "GPU"
    pue: str
    """Power usage effectiveness: facility power over IT power."""
    carbon_g_per_kwh: int
    links: dict[str, LinkConfig] = field(default_factory=dict)
    signing_key: str = ""
    sealing_key: str = ""

    def __post_init__(self) -> None:
        for name in ("partner", "territory"):
            if not ids.is_partner(getattr(self, name)):
                raise ValueError(f"{name} {getattr(self, name)!r} is not an ISO 3166 alpha-2 code in lower case")
        decimal("pue", self.pue, "1", "5")
        if not 0 <= self.carbon_g_per_kwh <= 3_000:
            raise ValueError(f"carbon_g_per_kwh must be 0 to 3,000, got {self.carbon_g_per_kwh}")
        for node in self.nodes:
            if not 1 <= node.gpus <= 1_024:
                raise ValueError(f"nodes: {node.id!r} must have 1 to 1,024 GPUs, got {node.gpus:,}")
        if len({node.id for node in self.nodes}) != len(self.nodes):
            raise ValueError("nodes must have distinct ids")
        if not self.gpu_resource.isidentifier():
            raise ValueError(f"gpu_resource {self.gpu_resource!r} must be the name of a Ray resource, such as GPU")
        _ = self.site

    @property
    def site(self) -> Site:
        """The domain's site."""
        return Site(
            id=self.id,
            partner=self.partner,
            territory=self.territory,
            flavor=self.flavor.flavor(),
            nodes=self.nodes,
            cotenancy=self.cotenancy,
            gpu_resource=self.gpu_resource,
            signing_key=self.signing_key,
            sealing_key=self.sealing_key,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTuning:
    """Timing of the server, its scheduler and its retries: the fields of the same names in its settings."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    lease_ms: int
    max_skew_ms: int
    site_lost_ms: int
    cycle_ms: int
    round_grace_ms: int
    scheduler: SchedulerTuning = field(default_factory=SchedulerTuning)
    retry: RetryTuning = field(default_factory=RetryTuning)

    def __post_init__(self) -> None:
        within(self, lease_ms=(1_000, 7 * 86_400_000), max_skew_ms=(0, 600_000))
        within(self, site_lost_ms=(1_000, 7 * 86_400_000), cycle_ms=(10, 60_000))
        within(self, round_grace_ms=(100, 7 * 86_400_000))
        if self.site_lost_ms < self.lease_ms + self.max_skew_ms:
            raise ValueError("site_lost_ms must not be below lease_ms + max_skew_ms: a leg could run twice")
