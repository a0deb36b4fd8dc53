"""Quota, summed from scratch: part of the independent check of a plan."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from consortium.domain.quota import Account
from consortium.scheduler.types import HeldLeg

Used = Counter[tuple[str, str]]
"""GPUs held by accounts themselves, by account and flavor."""


class Books:
    """The tree of accounts, and what each owns and uses with those below it."""

    def __init__(self, accounts: Iterable[Account]) -> None:
        accounts = tuple(accounts)
        self.parents = {account.id: account.parent for account in accounts} | {"": None}
        self.quotas = {(quota.account, quota.flavor): quota for account in accounts for quota in account.quotas}
        self._children: dict[str, list[str]] = defaultdict(list)
        for name, parent in sorted(self.parents.items()):
            if parent is not None:
                self._children[parent].append(name)

    def home(self, account: str) -> str:
        """The account that GPUs of `account` count for: a removed project's count for its partner, or for the root."""
        return next((name for name in (account, account[:2]) if name in self.parents), "")

    def line(self, account: str) -> list[str]:
        """The account and all above it."""
        line: list[str] = []
        node: str | None = self.home(account)
        while node is not None:
            line.append(node)
            node = self.parents[node]
        return line

    def used(self, legs: Iterable[HeldLeg]) -> Used:
        """What the legs hold, by account and flavor."""
        used: Used = Counter()
        for leg in legs:
            used[self.home(leg.account), leg.flavor] += sum(leg.nodes.values())
        return used

    def nominal(self, account: str, flavor: str) -> int:
        """What is written as the account's own."""
        quota = self.quotas.get((account, flavor))
        return quota.nominal if quota else 0

    def sums(self, node: str, flavor: str, used: Used) -> tuple[int, int]:
        """What the node and those below it own together, and what they use of it."""
        own, usage = self.nominal(node, flavor), used[node, flavor]
        for child in self._children.get(node, ()):
            child_own, child_usage = self.sums(child, flavor, used)
            below = self.quotas.get((child, flavor))
            kept = max(0, child_own - below.lending_limit) if below and below.lending_limit is not None else 0
            own += child_own - kept
            usage += max(0, child_usage - kept)
        return own, usage


def wrong_quotas(
    accounts: Iterable[Account],
    before: Iterable[HeldLeg],
    held: Iterable[HeldLeg],
    started: set[tuple[str, str]],
) -> list[str]:
    """Check every limit above an account that started something of a flavor, but where what it adds does not count.

    What an account never lends counts for nobody above it.
    """
    books = Books(accounts)
    was, used = books.used(before), books.used(held)
    found = set()
    for account, flavor in sorted(started):
        if (account, flavor) not in books.quotas:
            found.add(f"quota: {account} declares no {flavor}")
        for node in books.line(account):
            own, usage = books.sums(node, flavor, used)
            quota = books.quotas.get((node, flavor))
            top = books.parents[node] is None
            borrowing = 0 if top else (quota.borrowing_limit if quota else None)
            if borrowing is not None and usage > own + borrowing and usage > books.sums(node, flavor, was)[1]:
                found.add(
                    f"quota: {node or 'the consortium'} holds {usage} {flavor} of {own} and {borrowing} to borrow"
                )
    return sorted(found)
