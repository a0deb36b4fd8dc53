"""Quota in a tree of cohorts: what an account may still take of a flavor, given what everybody holds.

The arithmetic is Kueue's for hierarchical cohorts (pkg/cache/scheduler/resource_node.go), for a tree in which every
account, leaf or not, may hold GPUs itself. For one flavor and an account `a`:

- `subtree(a)` = nominal(a) + the sum over children c of subtree(c) - guaranteed(c): what the account and those
  below it own together and may use.
- `guaranteed(a)` = max(0, subtree(a) - lending_limit(a)); 0 without a lending limit: what it never lends.
- `usage(a)` = GPUs it holds + the sum over children c of max(0, usage(c) - guaranteed(c)).
- `available(root)` = subtree(root) - usage(root); below the root
  `available(a)` = max(0, guaranteed(a) - usage(a)) + min(available(parent), room under a's borrowing limit), where that
  room is subtree(a) - guaranteed(a) - max(0, usage(a) - guaranteed(a)) + borrowing_limit(a).

Nominal quotas add up: what a partner gives to a project under it is written at the project and not at the partner.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from consortium.domain import ids
from consortium.domain.quota import Account, Quota
from consortium.errors import ConfigError

ROOT = ""


class Room(NamedTuple):
    """GPUs an account may still take (never below 0), and what bounds them.

    `bound` is `cohort` (what others leave unused), `borrowing_limit` or `undeclared`; `account` is whose limit it is.
    """

    gpus: int
    bound: str
    account: str


class _Tree:
    """The fixed part: parents, quotas and the sums that follow from them. Shared by copies of a `QuotaTree`."""

    def __init__(self, accounts: Iterable[Account]) -> None:
        self.parent: dict[str, str | None] = {}
        self.quotas: dict[tuple[str, str], Quota] = {}
        self.subtree: dict[tuple[str, str], int] = {}
        self.guaranteed: dict[tuple[str, str], int] = {}
        self._paths: dict[str, tuple[str, ...]] = {}
        self._limited: dict[str, bool] = {}
        self.potential: dict[tuple[str, str], Room] = {}
        """Answers of `QuotaTree.potential`, which depend on nothing that is held."""
        for account in sorted(accounts, key=lambda item: item.id):
            self.parent[account.id] = account.parent if account.id != ROOT else None
            for quota in account.quotas:
                self.quotas[account.id, quota.flavor] = quota
        self.parent.setdefault(ROOT, None)
        order = self._children_first()
        for flavor in sorted({flavor for _, flavor in self.quotas}):
            self._sum_up(flavor, order)

    def _sum_up(self, flavor: str, order: list[str]) -> None:
        for account in order:
            quota = self.quotas.get((account, flavor))
            key = (account, flavor)
            subtree = self.subtree.get(key, 0) + (quota.nominal if quota else 0)
            kept = max(0, subtree - quota.lending_limit) if quota and quota.lending_limit is not None else 0
            self.subtree[key], self.guaranteed[key] = subtree, kept
            parent = self.parent[account]
            if parent is not None:
                self.subtree[parent, flavor] = self.subtree.get((parent, flavor), 0) + subtree - kept

    def _children_first(self) -> list[str]:
        depth: dict[str, int] = {}
        for account in self.parent:
            path = [account]
            while (above := self.parent.get(path[-1])) is not None:
                if above in path or above not in self.parent:
                    raise ConfigError(
                        f"account {path[-1]!r} names {above!r} as its parent, which "
                        + ("is below it" if above in path else "does not exist"),
                        where=f"account {account}",
                        fix="make the accounts a tree under the consortium's root",
                    )
                path.append(above)
            depth[account] = len(path)
        return sorted(depth, key=lambda account: (-depth[account], account))

    def limited(self, flavor: str) -> bool:
        """Whether any account has a borrowing or lending limit for the flavor."""
        known = self._limited.get(flavor)
        if known is None:
            known = self._limited[flavor] = any(
                quota.borrowing_limit is not None or quota.lending_limit is not None
                for (_, name), quota in self.quotas.items()
                if name == flavor
            )
        return known

    def path(self, account: str) -> tuple[str, ...]:
        """The account (or its home) and every account above it, the root last."""
        known = self._paths.get(account)
        if known is None:
            line: list[str] = []
            node: str | None = self.home(account)
            while node is not None:
                line.append(node)
                node = self.parent[node]
            known = self._paths[account] = tuple(line)
        return known

    def home(self, account: str) -> str:
        """The nearest known account: GPUs of a removed account count for its partner, or for the root."""
        if account in self.parent:
            return account
        partner = ids.partner_of(account)
        return partner if partner in self.parent else ROOT


class QuotaTree:
    """The tree with what is held. `charge` and `release` change it; `copy` is cheap."""

    __slots__ = ("_rooms", "_tree", "_usage")

    def __init__(self, accounts: Iterable[Account]) -> None:
        self._tree = _Tree(accounts)
        self._usage: dict[tuple[str, str], int] = {}
        self._rooms: dict[str, dict[str, Room]] = {}  # answers by flavor and account until the flavor's usage changes

    def copy(self) -> QuotaTree:
        """Return a tree whose charges do not touch this one."""
        twin = object.__new__(QuotaTree)
        twin._tree = self._tree
        twin._usage = dict(self._usage)
        twin._rooms = {}
        return twin

    def quota(self, account: str, flavor: str) -> Quota | None:
        """The quota the account declares for the flavor; without one it can hold none of it."""
        return self._tree.quotas.get((account, flavor))

    def flavors(self, account: str) -> tuple[str, ...]:
        """Flavors the account declares, sorted."""
        return tuple(sorted(flavor for name, flavor in self._tree.quotas if name == account))

    def path(self, account: str) -> tuple[str, ...]:
        """The account and every account above it, the root last."""
        return self._tree.path(account)

    def above(self, account: str, flavor: str, gpus: int = 0) -> int:
        """GPUs held above nominal by the account with those below it, were it to hold `gpus` more."""
        key = (account, flavor)
        return max(0, self._usage.get(key, 0) + gpus - self._tree.subtree.get(key, 0))

    def passes(self, account: str, flavor: str, gpus: int) -> list[tuple[str, int]]:
        """Each account on the path, with how many of `gpus` more for the first would count there.

        What an account never lends counts for nobody above it.
        """
        path = self._tree.path(account)
        if not self._tree.limited(flavor):
            return [(node, gpus) for node in path]
        counted = []
        for node in path:
            counted.append((node, gpus))
            free = self._tree.guaranteed.get((node, flavor), 0) - self._usage.get((node, flavor), 0)
            gpus -= max(0, min(gpus, free))
        return counted

    def binds(self, flavor: str, capacity: int) -> bool:
        """Whether some limit can be reached while fewer than `capacity` GPUs of the flavor are held."""
        return self._tree.limited(flavor) or self._tree.subtree.get((ROOT, flavor), 0) < capacity

    def used(self, account: str, flavor: str) -> int:
        """GPUs it holds, with what accounts below it hold above their guaranteed part."""
        return self._usage.get((account, flavor), 0)

    def charge(self, account: str, flavor: str, gpus: int) -> None:
        """Count `gpus` more as held by the account."""
        self._rooms.pop(flavor, None)
        node: str | None = self._tree.home(account)
        while node is not None and gpus > 0:
            key = (node, flavor)
            used = self._usage.get(key, 0)
            self._usage[key] = used + gpus
            gpus -= max(0, min(gpus, self._tree.guaranteed.get(key, 0) - used))
            node = self._tree.parent[node]

    def release(self, account: str, flavor: str, gpus: int) -> None:
        """Undo a `charge`."""
        self._rooms.pop(flavor, None)
        node: str | None = self._tree.home(account)
        while node is not None and gpus > 0:
            key = (node, flavor)
            used = self._usage.get(key, 0)
            self._usage[key] = used - gpus
            gpus = max(0, min(gpus, used - self._tree.guaranteed.get(key, 0)))
            node = self._tree.parent[node]

    def available(self, account: str, flavor: str) -> Room:
        """What the account may still take now."""
        rooms = self._rooms.get(flavor)
        if rooms is None:
            rooms = self._rooms[flavor] = {}
        room = rooms.get(account)
        if room is None:
            room = rooms[account] = self._room(account, flavor)
        return room

    def potential(self, account: str, flavor: str) -> Room:
        """What the account could take if nobody held anything: nominal, borrowing limits, all the cohort can lend."""
        room = self._tree.potential.get((account, flavor))
        if room is None:
            declared = (account, flavor) in self._tree.quotas
            room = self._available(account, flavor, {}) if declared else Room(0, "undeclared", account)
            self._tree.potential[account, flavor] = room
        return room

    def borrowed(self, account: str, flavor: str, gpus: int) -> int:
        """How many of `gpus` more would be above what is the account's own, with those below it."""
        own = self._tree.subtree.get((account, flavor), 0)
        used = self.used(account, flavor)
        return max(0, used + gpus - max(own, used))

    def _room(self, account: str, flavor: str) -> Room:
        if (account, flavor) not in self._tree.quotas:
            return Room(0, "undeclared", account)
        room = self._available(account, flavor, self._usage)
        return room if room.gpus >= 0 else Room(0, room.bound, room.account)

    def _available(self, account: str, flavor: str, usage: dict[tuple[str, str], int]) -> Room:
        key = (account, flavor)
        subtree, used = self._tree.subtree.get(key, 0), usage.get(key, 0)
        parent = self._tree.parent[account]
        if parent is None:
            return Room(subtree - used, "cohort", account)
        shared = self._available(parent, flavor, usage)
        kept = self._tree.guaranteed.get(key, 0)
        quota = self._tree.quotas.get(key)
        if quota is not None and quota.borrowing_limit is not None:
            room = subtree - kept - max(0, used - kept) + quota.borrowing_limit
            if room < shared.gpus:
                shared = Room(room, "borrowing_limit", account)
        return Room(max(0, kept - used) + shared.gpus, shared.bound, shared.account)
