"""Who holds whose GPUs: nominal, held, borrowed and lent, per account and flavor. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from consortium.domain.quota import Account
from consortium.scheduler import HeldLeg


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """GPUs of one flavor in the hands of an account and the projects below it."""

    account: str
    flavor: str
    nominal: int
    held: int
    borrowed: int
    """Held above nominal."""
    lent: int
    """Of its unused nominal, what others hold above theirs; where several could lend, in proportion."""


def shares(accounts: tuple[Account, ...], held: tuple[HeldLeg, ...]) -> tuple[Share, ...]:
    """Return the shares of every account but the root, by account and flavor."""
    by_id = {account.id: account for account in accounts}
    nominal: dict[tuple[str, str], int] = {}
    using: dict[tuple[str, str], int] = {}
    for account in accounts:
        for quota in account.quotas:
            for name in _line(by_id, account.id):
                nominal[name, quota.flavor] = nominal.get((name, quota.flavor), 0) + quota.nominal
    for leg in held:
        for name in _line(by_id, leg.account):
            using[name, leg.flavor] = using.get((name, leg.flavor), 0) + leg.gpus
    found: list[Share] = []
    for flavor in sorted({key[1] for key in (*nominal, *using)}):
        for siblings in _families(by_id):
            found += _family(flavor, siblings, nominal, using)
    return tuple(sorted(found, key=lambda share: (share.account, share.flavor)))


def _family(
    flavor: str, siblings: list[str], nominal: dict[tuple[str, str], int], using: dict[tuple[str, str], int]
) -> list[Share]:
    has = {name: nominal.get((name, flavor), 0) for name in siblings}
    holds = {name: using.get((name, flavor), 0) for name in siblings}
    borrowed = sum(max(0, holds[name] - has[name]) for name in siblings)
    idle = {name: max(0, has[name] - holds[name]) for name in siblings}
    lent = _divide(min(borrowed, sum(idle.values())), idle)
    return [
        Share(
            account=name,
            flavor=flavor,
            nominal=has[name],
            held=holds[name],
            borrowed=max(0, holds[name] - has[name]),
            lent=lent[name],
        )
        for name in siblings
        if has[name] or holds[name]
    ]


def _divide(amount: int, idle: dict[str, int]) -> dict[str, int]:
    """Divide `amount` GPUs in proportion to `idle`, whole GPUs only, largest remainders first, ties by name."""
    total = sum(idle.values())
    if not total:
        return dict.fromkeys(idle, 0)
    parts = {name: amount * count // total for name, count in idle.items()}
    rest = amount - sum(parts.values())
    for name in sorted(idle, key=lambda name: (-(amount * idle[name] % total), name))[:rest]:
        parts[name] += 1
    return parts


def _line(by_id: dict[str, Account], account: str) -> list[str]:
    """The account and every account above it, the root left out."""
    line = []
    current: str | None = account
    while current:
        line.append(current)
        found = by_id.get(current)
        current = None if found is None else found.parent
    return line


def _families(by_id: dict[str, Account]) -> list[list[str]]:
    """Accounts by common parent: who can borrow from whom."""
    families: dict[str, list[str]] = {}
    for account in by_id.values():
        if account.id:
            families.setdefault(account.parent or "", []).append(account.id)
    return [sorted(names) for _, names in sorted(families.items())]
