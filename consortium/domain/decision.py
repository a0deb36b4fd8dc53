"""Reasons: every "no" is a value with a code and typed numbers, and carries what was tried."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class ReasonCode(StrEnum):
    """Why a job or a leg is not running. Code is for programs; `Reason.message` renders it for people."""

    TERRITORY = "territory"
    POLICY = "policy"
    FLAVOR = "flavor"
    GANG_SIZE = "gang_size"
    """No node layout of the site can ever hold the leg."""
    CAPACITY = "capacity"
    """Enough GPUs exist but they are busy."""
    QUOTA_NEVER = "quota_never"
    QUOTA = "quota"
    """Above nominal, and what the cohort leaves unused (or the borrowing limit) does not suffice now."""
    PRIORITY = "priority"
    """Others are served first and backfilling would delay them."""
    RESERVATION = "reservation"
    COTENANCY = "cotenancy"
    WINDOW = "window"
    """Maintenance or somebody's advance reservation in its time, or nodes it failed on."""
    MAKING_ROOM = "making_room"
    """What was lent is being taken back for it."""
    SITE_STATE = "site_state"
    GANG_PARTNER = "gang_partner"
    """This site could, but another site of the gang cannot."""
    DEPENDENCY = "dependency"
    """A job that it comes after has not succeeded yet, or never will."""
    ARRAY = "array"
    """As many members of its array as may be in line at a time are."""
    BUDGET = "budget"
    """What its account may use in the period does not suffice."""
    DEADLINE = "deadline"
    """It can no longer end by then."""
    CONSENT = "consent"
    """The consent to use one of its inputs has ended."""
    REFUSED = "refused"
    """The site's agent refused the offer (own policy, signature, code digest, capacity)."""
    HELD = "held"
    """Waiting out a backoff after a fault."""
    PREEMPTED = "preempted"
    """Its GPUs are taken back: for another job, for maintenance, or because their site leaves."""
    STARTING = "starting"
    PROGRAM = "program"
    """The program of a leg failed, or its result does not hold; never retried."""
    SITE_FAULT = "site_fault"
    """A site failed too often."""
    DISPUTE = "dispute"
    """The sites' outer states differ."""
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """One reason with its numbers (integers and strings only); `site` and `clause` where they apply."""

    code: ReasonCode
    message: str
    numbers: dict[str, int | str] = field(default_factory=dict)
    site: str = ""
    fix: str = ""
    """One concrete step that would change the answer; empty where there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """A clause of a partner's policy that forbids a request, with where it is written and what would pass."""

    partner: str
    clause: str
    """`fr/residency/1`"""
    message: str
    file: str
    line: int
    would_pass: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDecision:
    """Allowed if and only if no partner concerned denies."""

    allowed: bool
    denials: tuple[Denial, ...] = ()
    consulted: tuple[str, ...] = ()
    """Partners whose policy was asked."""
