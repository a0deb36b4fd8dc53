"""The server's own book: how long each epoch of a leg ran by the server's receipt times, beside the site's metering."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from consortium.accounting.usage import UsageKey
from consortium.domain.records import UsageRow

AGREE_PERCENT = 5
"""The books agree where they differ by at most this share of the site's figure …"""
AGREE_SLACK_MS = 5_000
"""… plus this much per GPU and lease: a poll's interval and the network's delay at both ends."""


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
    agree: bool


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
    keys: dict[tuple[str, str], UsageKey] = {}
    site_ms: dict[tuple[str, str], int] = {}
    server_ms: dict[tuple[str, str], int] = {}
    gpus: dict[tuple[str, str], int] = {}
    for rows, sums in ((metered, site_ms), (receipts, server_ms)):
        for row in rows:
            lease = (row.leg, row.epoch)
            keys.setdefault(lease, UsageKey(site=row.site, flavor=row.flavor, account=row.account))
            sums[lease] = sums.get(lease, 0) + row.gpu_ms
            gpus[lease] = max(gpus.get(lease, 0), row.gpus)
    groups: dict[UsageKey, list[tuple[str, str]]] = {}
    for lease, key in keys.items():
        groups.setdefault(key, []).append(lease)
    return {key: _compare(groups[key], site_ms, server_ms, gpus) for key in sorted(groups)}


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
        agree=bool(parts) and all(part.agree for part in parts),
    )


def _compare(
    leases: list[tuple[str, str]],
    site_ms: Mapping[tuple[str, str], int],
    server_ms: Mapping[tuple[str, str], int],
    gpus: Mapping[tuple[str, str], int],
) -> TwoBooks:
    metered = [lease for lease in leases if lease in site_ms]
    known = [lease for lease in leases if lease in server_ms]
    unknown = [lease for lease in metered if lease not in server_ms]
    site = sum(site_ms[lease] for lease in metered)
    server = sum(server_ms[lease] for lease in known) if known else None
    difference = None if server is None or unknown else site - server
    slack = sum(gpus[lease] for lease in leases) * AGREE_SLACK_MS
    agree = difference is not None and 100 * abs(difference) <= AGREE_PERCENT * site + 100 * slack and bool(metered)
    return TwoBooks(
        site_gpu_ms=site,
        server_gpu_ms=server,
        difference_gpu_ms=difference,
        leases=len(metered),
        leases_unknown=len(unknown),
        agree=agree,
    )
