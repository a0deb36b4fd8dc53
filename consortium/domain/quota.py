"""What an account may hold at once (quota), use in a period (budget) and owes in a period (pledge)."""

from __future__ import annotations

from dataclasses import dataclass

from consortium.domain import ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Concurrent GPUs an account may hold of one flavor.

    `nominal` is its own; it may hold up to `nominal + borrowing_limit` while others of its cohort leave theirs unused,
    and lends at most `lending_limit` of its nominal. None means unlimited.
    """

    account: str
    flavor: str
    nominal: int
    borrowing_limit: int | None = None
    lending_limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("nominal", "borrowing_limit", "lending_limit"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1_000_000:
                raise ValueError(f"{name} of {self.account} for {self.flavor} must be 0 to 1,000,000 GPUs, got {value}")
        if self.lending_limit is not None and self.lending_limit > self.nominal:
            raise ValueError(
                f"{self.account} cannot lend {self.lending_limit} {self.flavor}: its nominal quota is {self.nominal}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Who pays: a partner (`fr`) or a project under it (`fr/health`). `parent` is its cohort; None at the root.

    The root cohort is the account `consortium`-wide pool, whose id is the empty string.
    """

    id: str
    parent: str | None
    weight: int = 1
    quotas: tuple[Quota, ...] = ()

    def __post_init__(self) -> None:
        if self.id and not ids.is_account(self.id):
            raise ValueError(f"account {self.id!r} must be a partner ('fr') or a project under one ('fr/health')")


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Reference GPU-milliseconds an account may use in a period (`YYYY-MM`)."""

    account: str
    period: str
    reference_gpu_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pledge:
    """GPU-milliseconds of a flavor that a partner promises to deliver in a period, with its notice for lowering it."""

    partner: str
    flavor: str
    period: str
    gpu_ms: int
    notice_days: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuotaApproval:
    """What an admin signs to change the agreed quotas: this text, in place of what is in force, in this federation."""

    federation: str
    """The name of its log."""
    person: str
    change: str
    """Digest of the new text."""
    replaces: str
    """Digest of the signed document in force."""
