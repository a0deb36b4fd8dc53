"""The agreed quotas: a tree of accounts, budgets and pledges, as `configs/quota/consortium.yaml` writes them.

Nominal quotas add up over the tree (Kueue's cohorts): what a project has as nominal is carved out of its partner's. A
flavor that a partner declares without `nominal` gets what its own sites deliver, less its projects' nominals.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from consortium.config.build import build, unknown
from consortium.config.marks import KeyPath, Marked
from consortium.domain import ids
from consortium.domain.partner import Site
from consortium.domain.quota import Account, Budget, Pledge, Quota
from consortium.domain.units import MS_PER_HOUR
from consortium.errors import ConfigError

_STRICT: dict[str, str] = {"extra": "forbid"}
_PERIOD = re.compile(r"^(20[0-9]{2})-(0[1-9]|1[0-2])\Z")
ROOT = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaEntry:
    """Quota of one account for one flavor; `nominal` may be left out at a partner (its sites' GPUs)."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    nominal: int | None = None
    borrowing_limit: int | None = None
    lending_limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("nominal", "borrowing_limit", "lending_limit"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1_000_000:
                raise ValueError(f"{name} must be 0 to 1,000,000 GPUs, got {value:,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectEntry:
    """A project under a partner; flavors it does not declare it cannot use."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    weight: int = 1
    quotas: dict[str, QuotaEntry]

    def __post_init__(self) -> None:
        _weight(self.weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class PartnerEntry:
    """A partner's account and its projects."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    weight: int = 1
    quotas: dict[str, QuotaEntry]
    projects: dict[str, ProjectEntry] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _weight(self.weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetEntry:
    """Reference GPU-hours an account may use in a month."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    account: str
    period: str
    reference_gpu_hours: int

    def __post_init__(self) -> None:
        _period(self.period)
        if not 0 <= self.reference_gpu_hours <= 1_000_000_000:
            raise ValueError(f"reference_gpu_hours must be 0 to 1,000,000,000, got {self.reference_gpu_hours:,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PledgeEntry:
    """GPU-hours of a flavor a partner promises in a month."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    partner: str
    flavor: str
    period: str
    gpu_hours: int
    notice_days: int

    def __post_init__(self) -> None:
        _period(self.period)
        if self.gpu_hours < 0:
            raise ValueError(f"gpu_hours must be 0 or more, got {self.gpu_hours:,}")
        if not 0 <= self.notice_days <= 3_650:
            raise ValueError(f"notice_days must be 0 to 3,650, got {self.notice_days:,}")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaFile:
    """The text of a quota file."""

    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    accounts: dict[str, PartnerEntry]
    budgets: tuple[BudgetEntry, ...] = ()
    pledges: tuple[PledgeEntry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaConfig:
    """Accounts (root first, then by id), budgets and pledges."""

    accounts: tuple[Account, ...]
    budgets: tuple[Budget, ...]
    pledges: tuple[Pledge, ...]


def build_quota(marked: Marked, sites: tuple[Site, ...], partners: Iterable[str] = ()) -> QuotaConfig:
    """Return what the file says; nominals left out come from `sites`.

    Where `partners` or `sites` are given, partners and flavors in the file must be among theirs. Where `partners` are,
    nothing may be listed twice; of what is in force already the last counts. Raises ConfigError with file and line.
    """
    said = build(QuotaFile, marked.data, marked)
    partners = tuple(partners)
    if partners:
        _once(marked, "budgets", [(entry.account, entry.period) for entry in said.budgets])
        _once(marked, "pledges", [(entry.partner, entry.flavor, entry.period) for entry in said.pledges])
    known = sorted(partners) or sorted(said.accounts)
    flavors = sorted({site.flavor.id for site in sites}) or sorted(
        {f for e in said.accounts.values() for f in e.quotas}
    )
    accounts = [Account(id=ROOT, parent=None)]
    for partner, entry in sorted(said.accounts.items()):
        if partner not in known:
            raise unknown("partner", partner, known, marked.where(("accounts", partner)))
        _known_flavors(marked, ("accounts", partner, "quotas"), entry.quotas, flavors)
        accounts.append(
            Account(id=partner, parent=ROOT, weight=entry.weight, quotas=_partner_quotas(marked, partner, entry, sites))
        )
        for name, project in sorted(entry.projects.items()):
            accounts.append(_project(marked, partner, name, project, flavors))
    names = [account.id for account in accounts if account.id]
    return QuotaConfig(
        accounts=tuple(accounts),
        budgets=tuple(_budget(marked, index, entry, names) for index, entry in enumerate(said.budgets)),
        pledges=tuple(_pledge(marked, i, entry, names, flavors, sites) for i, entry in enumerate(said.pledges)),
    )


def _once(marked: Marked, what: str, entries: list[tuple[str, ...]]) -> None:
    seen: set[tuple[str, ...]] = set()
    for index, entry in enumerate(entries):
        if entry in seen:
            raise ConfigError(
                f"{what}: {' '.join(entry)} is listed twice",
                where=marked.where((what, index)),
                fix="keep one of them",
            )
        seen.add(entry)


def _partner_quotas(marked: Marked, partner: str, entry: PartnerEntry, sites: tuple[Site, ...]) -> tuple[Quota, ...]:
    quotas = []
    for flavor, given in sorted(entry.quotas.items()):
        where = marked.where(("accounts", partner, "quotas", flavor))
        delivered = sum(site.gpus for site in sites if site.partner == partner and site.flavor.id == flavor)
        carved = sum(p.quotas[flavor].nominal or 0 for p in entry.projects.values() if flavor in p.quotas)
        nominal = given.nominal
        if sites and (nominal or 0) + carved > delivered:
            raise ConfigError(
                f"{partner} and its projects hold {(nominal or 0) + carved} {flavor}, its sites deliver {delivered}",
                where=_promise(marked, partner, entry, flavor),
                fix="lower a nominal, or borrow with nominal 0",
            )
        if nominal is None:
            if not sites:
                raise ConfigError(
                    f"{partner} states no nominal {flavor}, and no site is known to take it from", where=where
                )
            nominal = delivered - carved
        quotas.append(_quota(partner, flavor, given, nominal, where))
    for name, project in sorted(entry.projects.items()):
        for flavor in sorted(set(project.quotas) - set(entry.quotas)):
            raise ConfigError(
                f"{partner}/{name} has a quota of {flavor}, which {partner} itself does not declare",
                where=marked.where(("accounts", partner, "projects", name, "quotas", flavor)),
                fix=f"add {flavor}: {{nominal: 0}} to the quotas of {partner}",
            )
    return tuple(quotas)


def _promise(marked: Marked, partner: str, entry: PartnerEntry, flavor: str) -> str:
    """Return where the largest nominal of a partner's account or projects stands."""
    own: KeyPath = ("accounts", partner, "quotas", flavor)
    said = [(entry.quotas[flavor].nominal or 0, own)]
    for name, project in sorted(entry.projects.items()):
        if flavor in project.quotas:
            path = ("accounts", partner, "projects", name, "quotas", flavor)
            said.append((project.quotas[flavor].nominal or 0, path))
    return marked.where(max(said, key=lambda pair: pair[0])[1])


def _project(marked: Marked, partner: str, name: str, entry: ProjectEntry, flavors: list[str]) -> Account:
    path = ("accounts", partner, "projects", name)
    account = f"{partner}/{name}"
    if not ids.is_account(account):
        raise ConfigError(f"project {name!r}: lower-case letters, digits and '-' only", where=marked.where(path))
    _known_flavors(marked, (*path, "quotas"), entry.quotas, flavors)
    quotas = []
    for flavor, given in sorted(entry.quotas.items()):
        where = marked.where((*path, "quotas", flavor))
        if given.nominal is None:
            raise ConfigError(
                f"{account} states no nominal {flavor}", where=where, fix="add nominal (0 to borrow only)"
            )
        quotas.append(_quota(account, flavor, given, given.nominal, where))
    return Account(id=account, parent=partner, weight=entry.weight, quotas=tuple(quotas))


def _quota(account: str, flavor: str, given: QuotaEntry, nominal: int, where: str) -> Quota:
    try:
        return Quota(
            account=account,
            flavor=flavor,
            nominal=nominal,
            borrowing_limit=given.borrowing_limit,
            lending_limit=given.lending_limit,
        )
    except ValueError as fault:
        raise ConfigError(str(fault), where=where) from fault


def _budget(marked: Marked, index: int, entry: BudgetEntry, accounts: list[str]) -> Budget:
    if entry.account not in accounts:
        raise unknown("account", entry.account, accounts, marked.where(("budgets", index, "account")))
    return Budget(account=entry.account, period=entry.period, reference_gpu_ms=entry.reference_gpu_hours * MS_PER_HOUR)


def _pledge(
    marked: Marked, index: int, entry: PledgeEntry, accounts: list[str], flavors: list[str], sites: tuple[Site, ...]
) -> Pledge:
    partners = [name for name in accounts if ids.is_partner(name)]
    if entry.partner not in partners:
        raise unknown("partner", entry.partner, partners, marked.where(("pledges", index, "partner")))
    if entry.flavor not in flavors:
        raise unknown("flavor", entry.flavor, flavors, marked.where(("pledges", index, "flavor")))
    year, month = (int(part) for part in entry.period.split("-"))
    gpus = sum(site.gpus for site in sites if (site.partner, site.flavor.id) == (entry.partner, entry.flavor))
    most = gpus * 24 * calendar.monthrange(year, month)[1]
    if sites and entry.gpu_hours > most:
        raise ConfigError(
            f"{entry.partner} pledges {entry.gpu_hours:,} GPU-hours of {entry.flavor} in {entry.period}; "
            f"its {gpus} GPUs have {most:,}",
            where=marked.where(("pledges", index, "gpu_hours")),
        )
    return Pledge(
        partner=entry.partner,
        flavor=entry.flavor,
        period=entry.period,
        gpu_ms=entry.gpu_hours * MS_PER_HOUR,
        notice_days=entry.notice_days,
    )


def _known_flavors(
    marked: Marked, path: tuple[str | int, ...], quotas: dict[str, QuotaEntry], flavors: list[str]
) -> None:
    for flavor in sorted(quotas):
        if flavor not in flavors:
            raise unknown("flavor", flavor, flavors, marked.where((*path, flavor)))


def _weight(value: int) -> None:
    if not 1 <= value <= 1_000:
        raise ValueError(f"weight must be 1 to 1,000, got {value:,}")


def _period(value: str) -> None:
    if not _PERIOD.match(value):
        raise ValueError(f"period {value!r} must be a month such as 2026-11")
