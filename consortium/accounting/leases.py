"""The server's own book: how long each epoch of a leg ran by the server's receipt times, beside the site's metering."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from consortium.accounting.usage import UsageKey
from consortium.domain.records import UsageRow

AGREE_PERCENT = 5
"""The books agree where they differ, in their sum and in all leases but such a share of the time, by at most this
share of the site's figure …"""
AGREE_SLACK_MS = 5_000
"""… plus this much per GPU that the server leased: a poll's interval and the network's delay at both ends."""
_Lease = tuple[UsageKey, str, str, str]
"""What both books must say of an epoch for it to be the same one: site, flavor and account; leg, epoch and job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoBooks:
    """One figure in both books. What the server has no receipt for is None, never zero."""

    site_gpu_ms: int
    server_gpu_ms: int | None
    """Over the leases the server has receipts for."""
    difference_gpu_ms: int | None
    """Site less server."""
    leases: int
    """Epochs of legs that the site metered."""
    leases_unknown: int
    """Of those, how many the server has no receipt for."""
    site_gpu_ms_unknown: int
    """The site's figure for them."""
    agree: bool
    """Whether each lease that the site metered has a receipt, nearly all of their time in leases of as many GPUs and
    about as long in both books, and so the sum."""


def lease_row(body: Mapping[str, Any]) -> UsageRow | None:
    """Return the interval in a `lease` record's body, from running to final; None where nothing ran.

    Where an epoch ended before any poll saw it running, the interval begins when the server told the site to start.
    """
    ran = body.get("state") in ("succeeded", "failed")
    start = int(body.get("running_ms") or 0) or (int(body.get("start_ms") or 0) if ran else 0)
    end = int(body.get("final_ms") or 0)
    if not start or end <= start:
        return None
    return UsageRow(
        leg=body["leg"],
        epoch=body["epoch"],
        job=body["job"],
        account=body["account"],
        site=body["site"],
        flavor=body["flavor"],
        gpus=int(body["gpus"]),
        start_ms=start,
        end_ms=end,
    )


def two_books(metered: Iterable[UsageRow], receipts: Iterable[UsageRow]) -> dict[UsageKey, TwoBooks]:
    """Return both books by site, flavor and account, for every key that either of them has."""
    site, server = _by_lease(metered), _by_lease(receipts)
    groups: dict[UsageKey, list[_Lease]] = {}
    for lease in sorted({*site, *server}):
        groups.setdefault(lease[0], []).append(lease)
    return {key: _compare(groups[key], site, server) for key in sorted(groups)}


def join(books: Iterable[TwoBooks]) -> TwoBooks:
    """Return the sum of several figures; they agree only where each does."""
    parts = list(books)
    known = [part.server_gpu_ms for part in parts if part.server_gpu_ms is not None]
    differences = [part.difference_gpu_ms for part in parts if part.difference_gpu_ms is not None]
    return TwoBooks(
        site_gpu_ms=sum(part.site_gpu_ms for part in parts),
        server_gpu_ms=sum(known) if known else None,
        difference_gpu_ms=sum(differences) if differences and len(differences) == len(parts) else None,
        leases=sum(part.leases for part in parts),
        leases_unknown=sum(part.leases_unknown for part in parts),
        site_gpu_ms_unknown=sum(part.site_gpu_ms_unknown for part in parts),
        agree=bool(parts) and all(part.agree for part in parts),
    )


def _by_lease(rows: Iterable[UsageRow]) -> dict[_Lease, list[UsageRow]]:
    found: dict[_Lease, list[UsageRow]] = {}
    for row in rows:
        key = UsageKey(site=row.site, flavor=row.flavor, account=row.account)
        found.setdefault((key, row.leg, row.epoch, row.job), []).append(row)
    return found


def _compare(
    leases: list[_Lease], site: Mapping[_Lease, list[UsageRow]], server: Mapping[_Lease, list[UsageRow]]
) -> TwoBooks:
    metered = [lease for lease in leases if lease in site]
    known = [lease for lease in leases if lease in server]
    both = [lease for lease in metered if lease in server]
    site_ms = sum(_gpu_ms(site[lease]) for lease in metered)
    server_ms = sum(_gpu_ms(server[lease]) for lease in known)
    complete = bool(known) and len(both) == len(metered)
    slack_ms = sum(_slack_ms(server[lease]) for lease in both)
    apart_ms = sum(_gpu_ms(site[lease]) for lease in both if not _same(site[lease], server[lease]))
    agree = complete and bool(both) and _close(site_ms, server_ms, slack_ms)
    return TwoBooks(
        site_gpu_ms=site_ms,
        server_gpu_ms=server_ms if known else None,
        difference_gpu_ms=site_ms - server_ms if complete else None,
        leases=len(metered),
        leases_unknown=len(metered) - len(both),
        site_gpu_ms_unknown=site_ms - sum(_gpu_ms(site[lease]) for lease in both),
        agree=agree and 100 * apart_ms <= AGREE_PERCENT * site_ms,
    )


def _same(metered: list[UsageRow], receipts: list[UsageRow]) -> bool:
    """Whether both books have one lease alike: the same GPUs all along, for about as long."""
    gpus = {row.gpus for row in (*metered, *receipts)}
    return len(gpus) == 1 and _close(_gpu_ms(metered), _gpu_ms(receipts), _slack_ms(receipts))


def _close(site_gpu_ms: int, server_gpu_ms: int, slack_gpu_ms: int) -> bool:
    return 100 * abs(site_gpu_ms - server_gpu_ms) <= AGREE_PERCENT * site_gpu_ms + 100 * slack_gpu_ms


def _slack_ms(receipts: list[UsageRow]) -> int:
    return AGREE_SLACK_MS * max(row.gpus for row in receipts)


def _gpu_ms(rows: list[UsageRow]) -> int:
    return sum(row.gpu_ms for row in rows)
