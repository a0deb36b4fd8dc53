"""A partner's policy as written: rules in sections, each rule a clause with the file and line where it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar

from consortium.domain import ids
from consortium.domain.data import NEVER_CROSS, ArtifactClass
from consortium.domain.job import JobKind
from consortium.domain.partner import Cotenancy

_STRICT: dict[str, str] = {"extra": "forbid"}


class Action(StrEnum):
    """What a request asks for."""

    RUN = "run"
    """Run a job at a site."""
    READ = "read"
    """Read a partner's data at a site."""
    RELEASE = "release"
    """Send an artifact out of a site."""
    RECEIVE = "receive"
    """Take an artifact in at a site."""
    LOG = "log"
    """Show a log of a site to somebody of a partner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidencyRule:
    """The partner's data of these classes are read within these territories only."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    classes: tuple[ArtifactClass, ...]
    within: tuple[str, ...]

    def __post_init__(self) -> None:
        _codes("within", self.within)
        if not self.classes or not self.within:
            raise ValueError("classes and within must not be empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class PurposeRule:
    """The partner's data and sites serve these purposes only (for jobs of `kinds`; empty: all).

    Jobs of a kind that no rule names, where all rules name kinds, serve none.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    allow: tuple[str, ...]
    kinds: tuple[JobKind, ...] = ()

    def __post_init__(self) -> None:
        _names("allow", self.allow)
        if not self.allow:
            raise ValueError("allow must name at least one purpose")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbargoRule:
    """These partners get nothing of the partner: neither as submitter, nor as destination, nor as sender."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    partners: tuple[str, ...]
    actions: tuple[Action, ...] = tuple(Action)

    def __post_init__(self) -> None:
        _codes("partners", self.partners)
        if not self.partners or not self.actions:
            raise ValueError("partners and actions must not be empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRule:
    """Artifacts of these classes may leave the partner's sites to these destinations. What is not listed stays."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    classes: tuple[ArtifactClass, ...]
    to: tuple[str, ...]

    def __post_init__(self) -> None:
        _destinations(self.to)
        if not self.classes:
            raise ValueError("classes must not be empty")
        for name in self.classes:
            if name in NEVER_CROSS:
                raise ValueError(f"classes: {name.value!r} is text, and text never crosses a border in any policy")
            if name is ArtifactClass.LOG:
                raise ValueError("classes: 'log' is said under `logs`, not under `artifacts`")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRule:
    """Logs of the partner's sites may be read by people of these partners, by way of `consortium` where it is named."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    to: tuple[str, ...]

    def __post_init__(self) -> None:
        _destinations(self.to)


@dataclass(frozen=True, slots=True, kw_only=True)
class CotenancyRule:
    """The partner's data are read only at sites that keep jobs apart at least this much: open, partner, exclusive."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    at_least: Cotenancy


@dataclass(frozen=True, slots=True, kw_only=True)
class CategoryRule:
    """The partner's data of these categories are read for these purposes only (empty: for none)."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    categories: tuple[str, ...]
    purposes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _names("categories", self.categories)
        _names("purposes", self.purposes)
        if not self.categories:
            raise ValueError("categories must not be empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRules:
    """What a policy file says. `residency`, `purposes`, `artifacts` and `logs` must be there, the rest may."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    partner: str
    version: int
    residency: tuple[ResidencyRule, ...]
    purposes: tuple[PurposeRule, ...]
    artifacts: tuple[ArtifactRule, ...]
    logs: tuple[LogRule, ...]
    embargoes: tuple[EmbargoRule, ...] = ()
    cotenancy: tuple[CotenancyRule, ...] = ()
    categories: tuple[CategoryRule, ...] = ()

    def __post_init__(self) -> None:
        if not ids.is_partner(self.partner):
            raise ValueError(f"partner {self.partner!r} is not an ISO 3166 alpha-2 code in lower case")
        if self.version < 1:
            raise ValueError(f"version must be at least 1, got {self.version}")
        if not self.purposes:
            raise ValueError("purposes needs at least one rule: nothing may run without a purpose")
        if len(self.logs) != 1:
            raise ValueError("logs needs exactly one rule; `- to: []` keeps them at home")
        resident = {name for rule in self.residency for name in rule.classes}
        for name in NEVER_CROSS:
            if name not in resident:
                raise ValueError(f"residency must say where {name.value!r} is read: text stays at home")
        for rule in self.residency:
            abroad = [land for land in rule.within if land != self.partner]
            text = [name.value for name in rule.classes if name in NEVER_CROSS]
            if text and abroad:
                raise ValueError(
                    f"residency lets {text[0]!r} be read in {abroad[0]!r}: text never crosses a border in any policy"
                )
        released = [name for rule in self.artifacts for name in rule.classes]
        for name in released:
            if released.count(name) > 1:
                raise ValueError(
                    f"artifacts lists {name.value!r} twice: say each class once, with all its destinations"
                )
        if any(self.partner in rule.partners for rule in self.embargoes):
            raise ValueError(f"embargoes names {self.partner!r} itself")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartnerPolicy:
    """A policy with where it is written: `lines` maps a clause (`residency/1`) or section to its line in `file`."""

    rules: PolicyRules
    file: str
    lines: dict[str, int] = field(default_factory=dict)

    @property
    def partner(self) -> str:
        """Whose policy it is."""
        return self.rules.partner


def _codes(name: str, values: tuple[str, ...]) -> None:
    for value in values:
        if not ids.is_partner(value):
            raise ValueError(f"{name}: {value!r} is not an ISO 3166 alpha-2 code in lower case")


def _names(name: str, values: tuple[str, ...]) -> None:
    for value in values:
        if not ids.is_name(value):
            raise ValueError(f"{name}: {value!r}: lower-case letters, digits, '.', '_' and '-' only")


def _destinations(values: tuple[str, ...]) -> None:
    for value in values:
        if value != ids.CONSORTIUM and not ids.is_partner(value):
            raise ValueError(f"to: {value!r} is neither a partner's code nor {ids.CONSORTIUM!r}")
