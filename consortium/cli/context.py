"""Who is calling, with which key, at which server."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consortium.errors import AuthError, ConsortiumError, NotFoundError, UnreachableError, UsageError

if TYPE_CHECKING:
    from consortium.client.api import Client
    from consortium.keys.signing import SigningKey
    from consortium.local.paths import ClientFile

As = Annotated[
    str, typer.Option("--as", metavar="PERSON", envvar="CONSORTIUM_AS", help="Who you are, such as fr/amelie.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Caller:
    """A person at the command line. Reads the current embedded federation, or the environment.

    `$CONSORTIUM_SERVER` with `$CONSORTIUM_TOKEN` (and `$CONSORTIUM_KEY`, a key file, to sign) name any other server. A
    token in the environment says who is calling, of the federation here too.
    """

    def __init__(self, person: str = "", *, partner: str = "", role: str = "engineer") -> None:
        self._server = named_server()
        self._here = None if self._server else _current()
        self._named_token = os.environ.get("CONSORTIUM_TOKEN", "")
        known = self._here if not person and not self._named_token else None
        self.person = self._default(known, partner, role) if known else person

    def client(self) -> Client:
        """Return the SDK's client. Raises AuthError where the token is of another person than who was named."""
        from consortium.client.api import Client

        client = Client(self._here.server_url if self._here else self._server, self._token())
        if self.person and self._named_token:
            subject = str(client.whoami()["subject"])
            if subject != self.person:
                raise AuthError(
                    f"the token is that of {subject}, not of {self.person}",
                    where="--as or $CONSORTIUM_AS, and $CONSORTIUM_TOKEN",
                    fix=f"name {subject} or nobody, or set the token of {self.person}",
                )
        return client

    def key(self) -> SigningKey:
        """Return the person's signing key."""
        from consortium.keys.signing import SigningKey

        named = os.environ.get("CONSORTIUM_KEY")
        if named:
            return SigningKey.load(named)
        if self._here is None:
            raise AuthError("no key to sign with", where="$CONSORTIUM_KEY", fix="set it to your key file")
        return SigningKey.load(self._of(self._here.key_paths))

    def name(self) -> str:
        """Return the person's id; asks the server where only a token is known."""
        return self.person or str(self.client().whoami()["subject"])

    def _token(self) -> str:
        if self._named_token:
            return _checked(self._named_token, "$CONSORTIUM_TOKEN")
        if self._here is None:
            raise AuthError(
                "no token", where="$CONSORTIUM_TOKEN", fix="set it to a bearer token for $CONSORTIUM_SERVER"
            )
        path = self._of(self._here.token_paths)
        try:
            return _checked(Path(path).read_text(encoding="ascii", errors="replace"), path)
        except OSError as fault:
            raise AuthError(f"cannot read the token of {self.person}: {fault.strerror}", where=path) from fault

    def _of(self, paths: dict[str, str]) -> str:
        person = self.name()
        if person not in paths:
            raise NotFoundError(f"nobody is called {person!r}", where="--as", fix=f"one of {', '.join(sorted(paths))}")
        return paths[person]

    @staticmethod
    def _default(here: ClientFile, partner: str, role: str) -> str:
        """The person with `role` of `partner` (else of the default person's partner)."""
        for home in (partner, here.default_person[:2]):
            fitting = sorted(p for p, roles in here.roles.items() if p[:2] == home and role in roles)
            if fitting:
                return fitting[0]
        return here.default_person


def told(fault: ConsortiumError) -> str:
    """Return an error as people read it. A server of the federation here that is away is started anew, or is not."""
    if isinstance(fault, UnreachableError) and not named_server():
        with suppress(ConsortiumError):
            fault.fix = _restart_of(fault.where) or fault.fix
    return fault.render()


def _restart_of(url: str | None) -> str:
    """Return what to do while a supervisor of this home starts the server at `url` anew; empty where none does."""
    from consortium.local.lock import holder
    from consortium.local.paths import FederationDir, home

    if url != _current().server_url or not holder(home()):
        return ""
    log = FederationDir.current().log("server")
    return f"try again in a moment: its supervisor starts it anew where it has ended; what it says is in {log}"


def named_server() -> str:
    """Return the server that `$CONSORTIUM_SERVER` names; empty where commands speak to the federation here."""
    return os.environ.get("CONSORTIUM_SERVER", "")


def _checked(token: str, where: str) -> str:
    """Return a token that a request can carry."""
    token = token.strip()
    if not token or not all("!" <= sign <= "~" for sign in token):
        raise AuthError("not a bearer token: it is letters, digits and signs of ASCII in one piece", where=where)
    return token


def _current() -> ClientFile:
    from consortium.local.paths import ClientFile, home, unusable

    path = home() / "current" / "client.json"
    try:
        path.stat()
    except FileNotFoundError as fault:
        raise NotFoundError(
            "there is no federation here",
            where=str(home()),
            fix="start one with `consortium up`, or set $CONSORTIUM_SERVER and $CONSORTIUM_TOKEN",
        ) from fault
    except OSError as fault:
        raise unusable(fault) from fault
    return ClientFile.load(path)


def check_job_id(job: str) -> str:
    """Return a job id; raises UsageError where it is none."""
    if not job.startswith("job-"):
        raise UsageError(f"{job!r} is not a job id", fix="ids look like job-…; `consortium jobs` lists them")
    return job
