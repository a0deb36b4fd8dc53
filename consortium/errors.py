"""One root and few leaves: every error a user can meet, with the exit code the command line gives it.

An error says what was wrong, where it stands and what to do next. Refusals by policy or quota are *values* inside
the system (`consortium.domain.decision`); they become errors only at the edge, where a person asked for something.
"""

from __future__ import annotations

import sqlite3
from typing import ClassVar


class ConsortiumError(Exception):
    """Root of all errors raised by this package.

    `what` is the fault in one sentence, `where` a file and line, URL or object id, `fix` the next step.
    """

    exit_code: ClassVar[int] = 1
    status: ClassVar[int] = 500
    slug: ClassVar[str] = "error"

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(self.render())

    def render(self) -> str:
        """Return the message as people read it: what, where, fix, each on its own line."""
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  fix:   {self.fix}")
        return "\n".join(lines)


class JobFailedError(ConsortiumError):
    """The job or check ran and failed."""

    exit_code = 1
    status = 500
    slug = "failed"


class UsageError(ConsortiumError):
    """A bad argument, request or config; the user can mend it."""

    exit_code = 2
    status = 422
    slug = "bad-request"


class ConfigError(UsageError):
    """A config file or override that does not say something valid; `where` is file and line."""

    slug = "bad-config"


class AuthError(UsageError):
    """A missing, expired or insufficient credential."""

    status = 401
    slug = "unauthenticated"


class ForbiddenError(AuthError):
    """A valid credential whose role may not do this."""

    status = 403
    slug = "forbidden"


class ConflictError(UsageError):
    """The thing changed meanwhile, exists already, or is held by someone else."""

    status = 409
    slug = "conflict"


class PolicyDeniedError(ConsortiumError):
    """A partner's policy denies the request; `where` names clause, file and line."""

    exit_code = 3
    status = 403
    slug = "denied-by-policy"


class QuotaDeniedError(ConsortiumError):
    """The job could never fit the account's quota, whatever else ends first."""

    exit_code = 4
    status = 403
    slug = "denied-by-quota"


class NotFoundError(ConsortiumError):
    """The named thing does not exist."""

    exit_code = 5
    status = 404
    slug = "not-found"


class UnreachableError(ConsortiumError):
    """A server, store or cluster does not answer."""

    exit_code = 6
    status = 503
    slug = "unreachable"


class VerificationError(ConsortiumError):
    """A signature, digest, proof or total does not hold."""

    exit_code = 7
    status = 409
    slug = "verification-failed"


_PASSING = {
    sqlite3.SQLITE_BUSY: "end the other program that holds it, such as a copy that is being made, and start again",
    sqlite3.SQLITE_LOCKED: "end the other program that holds it, such as a copy that is being made, and start again",
    sqlite3.SQLITE_FULL: "make room on its disk, and start again",
    sqlite3.SQLITE_IOERR: "see that its disk works and has room, and start again",
    sqlite3.SQLITE_READONLY: "let this program write to it and to its folder, and start again",
    sqlite3.SQLITE_CANTOPEN: "let this program write to it and to its folder, and start again",
    sqlite3.SQLITE_NOMEM: "give this program more memory, and start again",
}


def of_sqlite(fault: sqlite3.Error, what: str, *, where: str, damaged: str) -> ConsortiumError:
    """Return the error for a SQLite file that cannot be used.

    UnreachableError with what mends it where nothing is wrong with the file itself; else ConfigError, with the fix
    `damaged`.
    """
    fix = _PASSING.get(getattr(fault, "sqlite_errorcode", 0) & 0xFF)
    if fix is None:
        return ConfigError(f"{what}: {fault}", where=where, fix=damaged)
    return UnreachableError(f"{what}: {fault}", where=where, fix=fix)


_LEAVES: tuple[type[ConsortiumError], ...] = (
    JobFailedError, UsageError, ConfigError, AuthError, ForbiddenError, ConflictError, PolicyDeniedError,
    QuotaDeniedError, NotFoundError, UnreachableError, VerificationError,
)  # fmt: skip


def by_slug(slug: str) -> type[ConsortiumError]:
    """Return the error class that a problem document's `type` names; the root where it is unknown."""
    return next((leaf for leaf in _LEAVES if leaf.slug == slug), ConsortiumError)
