"""What a new version of the agreed quotas changes, and whose consent each change needs.

A partner decides alone on what is its own: its nominals (within what its sites deliver), what it lends, how it divides
them among its projects, and tighter limits for itself. What gives it more of the others' needs their consent: a larger
weight or budget of a partner that of every partner, a higher borrowing limit of a flavor that of those who own some. A
pledge is lowered only from a period that begins after its notice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from consortium.accounting.periods import bounds
from consortium.config.quota import QuotaConfig
from consortium.domain import ids
from consortium.domain.quota import Account, Budget, Pledge, Quota
from consortium.domain.units import MS_PER_HOUR

_DAY_MS = 86_400_000
Value = int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaChange:
    """One value that differs. None is "no limit" for limits and "none" for budgets and pledges."""

    account: str
    what: str
    """Such as `nominal h100-sxm`, `weight`, `budget 2026-11`."""
    before: Value
    after: Value
    consent: tuple[str, ...]
    """Partners whose admins must sign it, sorted."""
    refused: str = ""
    """Why it cannot be made at all now; empty where it can."""


@dataclass(frozen=True, slots=True)
class _Parties:
    """Who is in the consortium, and who owns GPUs of each flavor."""

    everybody: frozenset[str]
    owners: Mapping[str, frozenset[str]] = field(default_factory=dict)


def quota_changes(before: QuotaConfig, after: QuotaConfig, now_ms: int) -> tuple[QuotaChange, ...]:
    """Return the changes by account and what they are about."""
    parties = _parties(before, after)
    found: list[QuotaChange] = []
    old, new = ({account.id: account for account in config.accounts if account.id} for config in (before, after))
    for name in sorted({*old, *new}):
        found += _account(name, old.get(name), new.get(name), parties)
    found += _budgets(before.budgets, after.budgets, parties)
    found += _pledges(before.pledges, after.pledges, now_ms)
    return tuple(sorted(found, key=lambda change: (change.account, change.what)))


def consent_needed(changes: tuple[QuotaChange, ...]) -> tuple[str, ...]:
    """Return the partners whose admins must sign, sorted."""
    return tuple(sorted({partner for change in changes for partner in change.consent}))


def _parties(before: QuotaConfig, after: QuotaConfig) -> _Parties:
    owners: dict[str, set[str]] = {}
    everybody = set()
    for config in (before, after):
        for account in config.accounts:
            if account.id:
                everybody.add(ids.partner_of(account.id))
            for quota in account.quotas:
                if quota.nominal:
                    owners.setdefault(quota.flavor, set()).add(ids.partner_of(account.id))
    return _Parties(frozenset(everybody), {flavor: frozenset(names) for flavor, names in owners.items()})


def _account(name: str, old: Account | None, new: Account | None, parties: _Parties) -> list[QuotaChange]:
    own = frozenset({ids.partner_of(name)})
    whole = own if "/" in name else parties.everybody
    if old is None or new is None:
        given = QuotaChange(account=name, what="account", before=int(old is not None), after=int(new is not None),
                            consent=_sorted(whole))  # fmt: skip
        return [given]
    found = []
    if old.weight != new.weight:
        consent = whole if new.weight > old.weight else own
        found.append(
            QuotaChange(account=name, what="weight", before=old.weight, after=new.weight, consent=_sorted(consent))
        )
    before, after = ({quota.flavor: quota for quota in account.quotas} for account in (old, new))
    for flavor in sorted({*before, *after}):
        owners = own if "/" in name else own | parties.owners.get(flavor, frozenset())
        found += _quota(name, flavor, before.get(flavor), after.get(flavor), own, owners)
    return found


def _quota(
    name: str, flavor: str, old: Quota | None, new: Quota | None, own: frozenset[str], owners: frozenset[str]
) -> list[QuotaChange]:
    """A flavor that is not declared cannot be borrowed: that is a borrowing limit of 0 with a nominal of 0."""
    blank = Quota(account=name, flavor=flavor, nominal=0, borrowing_limit=0)
    old, new = old or blank, new or blank
    found = []
    for field_name in ("nominal", "borrowing_limit", "lending_limit"):
        before, after = getattr(old, field_name), getattr(new, field_name)
        if before != after:
            more = field_name == "borrowing_limit" and _more(before, after)
            what = f"{field_name.replace('_', ' ')} {flavor}"
            consent = _sorted(owners if more else own)
            found.append(QuotaChange(account=name, what=what, before=before, after=after, consent=consent))
    return found


def _budgets(before: tuple[Budget, ...], after: tuple[Budget, ...], parties: _Parties) -> list[QuotaChange]:
    old, new = ({(b.account, b.period): b.reference_gpu_ms // MS_PER_HOUR for b in given} for given in (before, after))
    found = []
    for account, period in sorted({*old, *new}):
        was, becomes = old.get((account, period)), new.get((account, period))
        if was != becomes:
            own = frozenset({ids.partner_of(account)})
            consent = parties.everybody if _more(was, becomes) and "/" not in account else own
            what = f"budget {period}"
            found.append(QuotaChange(account=account, what=what, before=was, after=becomes, consent=_sorted(consent)))
    return found


def _pledges(before: tuple[Pledge, ...], after: tuple[Pledge, ...], now_ms: int) -> list[QuotaChange]:
    old, new = ({(p.partner, p.flavor, p.period): p for p in given} for given in (before, after))
    found = []
    for key in sorted({*old, *new}):
        partner, flavor, period = key
        was, becomes = old.get(key), new.get(key)
        parts = [
            ("pledge", was.gpu_ms // MS_PER_HOUR if was else None, becomes.gpu_ms // MS_PER_HOUR if becomes else None),
            ("notice days of the pledge", was.notice_days if was else None, becomes.notice_days if becomes else None),
        ]
        for what, earlier, later in parts if was and becomes else parts[:1]:
            if earlier != later:
                lowered = was is not None and (later or 0) < (earlier or 0)
                due_ms = bounds(period)[0] - was.notice_days * _DAY_MS if was else 0
                refused = ""
                if was is not None and lowered and now_ms > due_ms:
                    refused = f"lowering it needs {was.notice_days} days' notice before {period} begins"
                found.append(
                    QuotaChange(account=partner, what=f"{what} {flavor} {period}", before=earlier, after=later,
                                consent=(partner,), refused=refused)
                )  # fmt: skip
    return found


def _more(before: Value, after: Value) -> bool:
    """Whether a limit was raised; None is no limit."""
    return before is not None and (after is None or after > before)


def _sorted(names: frozenset[str]) -> tuple[str, ...]:
    return tuple(sorted(names))
