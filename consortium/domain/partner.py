"""Partners, their people, their sites and the GPU flavors the sites hold."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from consortium.domain import ids


class Role(StrEnum):
    """What a person or process may do in the API."""

    ENGINEER = "engineer"
    ADMIN = "admin"
    AUDITOR = "auditor"
    SITE = "site"


class SiteState(StrEnum):
    """Whether a site takes new legs. `lost` is set by silence, `withdrawn` by its partner, the rest by operators."""

    ACTIVE = "active"
    DRAINING = "draining"
    DRAINED = "drained"
    LOST = "lost"
    WITHDRAWN = "withdrawn"


class Cotenancy(StrEnum):
    """Who may share a node at a site: `partner` (one partner's jobs at a time), `exclusive` (one job), `open`."""

    PARTNER = "partner"
    EXCLUSIVE = "exclusive"
    OPEN = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Partner:
    """A state in the consortium. `id` is its ISO 3166 alpha-2 code in lower case; `languages` are ISO 639-1."""

    id: str
    name: str
    languages: tuple[str, ...]
    weight: int = 1
    """Fair-share weight agreed between the partners."""

    def __post_init__(self) -> None:
        if not ids.is_partner(self.id):
            raise ValueError(f"partner id {self.id!r} is not an ISO 3166 alpha-2 code in lower case")
        if self.weight < 1:
            raise ValueError(f"weight of {self.id} must be at least 1, got {self.weight}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A member of a partner's roster; `id` is `fr/amelie`, keys are base64 of the raw 32 bytes."""

    id: str
    name: str
    roles: tuple[Role, ...]
    signing_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavor:
    """A GPU type at a site. TFLOP/s are dense BF16; `reference_factor` is measured against the reference flavor."""

    id: str
    memory_bytes: int
    peak_tflops: str
    measured_tflops: str
    board_power_w: int
    reference_factor: str
    """Decimal string: reference GPU-hours per GPU-hour of this flavor."""
    factor_version: str

    def __post_init__(self) -> None:
        if not ids.is_name(self.id):
            raise ValueError(f"flavor id {self.id!r}: lower-case letters, digits, '.', '_' and '-' only")
        for name in ("peak_tflops", "measured_tflops", "reference_factor"):
            if Fraction(getattr(self, name)) <= 0:
                raise ValueError(f"{name} of flavor {self.id} must be above zero")
        if self.memory_bytes <= 0 or self.board_power_w <= 0:
            raise ValueError(f"memory_bytes and board_power_w of flavor {self.id} must be above zero")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A machine with `gpus` GPUs of the site's flavor; gangs are packed by whole nodes first."""

    id: str
    gpus: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One Ray cluster that a partner owns, in one territory, of one flavor. Keys are base64 of the raw 32 bytes."""

    id: str
    partner: str
    territory: str
    """ISO 3166 alpha-2 of the land the machines stand in, lower case."""
    flavor: Flavor
    nodes: tuple[Node, ...]
    cotenancy: Cotenancy = Cotenancy.PARTNER
    gpu_resource: str = "GPU"
    """The Ray resource that stands for a GPU: `GPU` where they are real, `sim_gpu` on the embedded federation."""
    signing_key: str = ""
    sealing_key: str = ""

    def __post_init__(self) -> None:
        if not ids.is_site(self.id) or ids.partner_of(self.id) != self.partner:
            raise ValueError(f"site id {self.id!r} must be its partner's id and a number, such as {self.partner}-1")
        if not self.nodes or any(node.gpus < 1 for node in self.nodes):
            raise ValueError(f"site {self.id} needs nodes with at least one GPU each")

    @property
    def gpus(self) -> int:
        """All GPUs of the site."""
        return sum(node.gpus for node in self.nodes)
