"""Who calls, and what they may do.

What a poll needs is asynchronous, though it waits for nothing: it must not wait for a thread that others keep busy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from fastapi import Depends, Header, Request

from consortium.domain.partner import Role
from consortium.errors import AuthError, ForbiddenError, NotFoundError
from consortium.keys import tokens
from consortium.keys.roster import Rosters
from consortium.keys.tokens import Claims
from consortium.server.core import Core
from consortium.server.federation import last_roster


async def core_of(request: Request) -> Core:
    """Return the server's parts."""
    core: Core = request.app.state.core
    return core


CoreArg = Annotated[Core, Depends(core_of)]


async def claims_of(core: CoreArg, authorization: Annotated[str | None, Header()] = None) -> Claims:
    """Return who calls. Raises AuthError without a valid bearer token."""
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise AuthError("no bearer token", fix="send `Authorization: Bearer TOKEN`")
    return tokens.check(core.key.public, token.strip(), core.clock.now_ms())


ClaimsArg = Annotated[Claims, Depends(claims_of)]


def user_of(core: CoreArg, claims: ClaimsArg) -> Claims:
    """Return the calling person, with those of the token's roles that its partner's roster still gives it.

    Raises ForbiddenError for a site, and for somebody whom the partner vouches for no longer.
    """
    if not {Role.ENGINEER, Role.ADMIN, Role.AUDITOR} & set(claims.roles):
        raise ForbiddenError(f"{claims.subject} is no person and may not do this")
    return _vouched(claims, core.federation.rosters)


UserArg = Annotated[Claims, Depends(user_of)]


def auditor_of(core: CoreArg, claims: ClaimsArg) -> Claims:
    """Return the calling person, as `user_of` does; of a partner that has left, by the last roster that it signed.

    Its roster's expiry does not count then: there is nothing left to sign a new one for, and what it contributed stays
    its own to read.
    """
    if any(document.partner == claims.partner for document in core.federation.documents):
        return user_of(core, claims)
    with core.db.read() as connection:
        return _vouched(claims, last_roster(connection, claims.partner, core.trust))


AuditorArg = Annotated[Claims, Depends(auditor_of)]


def _vouched(claims: Claims, rosters: Rosters) -> Claims:
    try:
        given = rosters.person(claims.subject).roles
    except NotFoundError as fault:
        raise ForbiddenError(fault.what, fix=fault.fix) from fault
    kept = tuple(role for role in claims.roles if role in given)
    if not kept:
        raise ForbiddenError(f"the roster of {claims.partner} gives {claims.subject} none of its token's roles")
    return replace(claims, roles=kept)


def reader_of(core: CoreArg, claims: ClaimsArg) -> Claims:
    """Return the caller, person or site: what both may read."""
    return claims if Role.SITE in claims.roles else user_of(core, claims)


ReaderArg = Annotated[Claims, Depends(reader_of)]


def need(claims: Claims, *roles: Role) -> None:
    """Raise ForbiddenError unless the caller has one of `roles`."""
    if not set(roles) & set(claims.roles):
        wanted = " or ".join(role.value for role in roles)
        raise ForbiddenError(f"{claims.subject} is not {wanted}", fix=f"ask somebody who is {wanted}")


async def site_caller(claims: ClaimsArg) -> str:
    """Return the id of the calling site. Raises ForbiddenError for anybody else."""
    if Role.SITE not in claims.roles:
        raise ForbiddenError(f"{claims.subject} is no site")
    return claims.subject


SiteArg = Annotated[str, Depends(site_caller)]


def own_site(site: str, caller: str) -> None:
    """Raise ForbiddenError unless a site speaks for itself."""
    if site != caller:
        raise ForbiddenError(f"{caller} cannot speak for {site}")
