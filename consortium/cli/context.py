"""Who is calling, with which key, at which server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consortium.errors import AuthError, ConfigError, NotFoundError, UsageError

if TYPE_CHECKING:
    from consortium.client.api import Client
    from consortium.keys.signing import SigningKey

As = Annotated[
    str, typer.Option("--as", metavar="PERSON", envvar="CONSORTIUM_AS", help="Who you are, such as fr/amelie.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Caller:
    """A person at the command line. Reads the current embedded federation, or the environment.

    `$CONSORTIUM_SERVER` with `$CONSORTIUM_TOKEN` (and `$CONSORTIUM_KEY`, a key file, to sign) name any other server.
    """

    def __init__(self, person: str = "", *, partner: str = "", role: str = "engineer") -> None:
        self._server = named_server()
        self._known: dict[str, Any] = {} if self._server else _current()
        self.person = person or ("" if self._server else self._default(partner, role))

    def client(self) -> Client:
        """Return the SDK's client."""
        from consortium.client.api import Client

        return Client(self._server or self._known["server_url"], self._token())

    def key(self) -> SigningKey:
        """Return the person's signing key."""
        from consortium.keys.signing import SigningKey

        named = os.environ.get("CONSORTIUM_KEY")
        if named:
            return SigningKey.load(named)
        if self._server:
            raise AuthError("no key to sign with", where="$CONSORTIUM_KEY", fix="set it to your key file")
        return SigningKey.load(self._of("key_paths"))

    def name(self) -> str:
        """Return the person's id; asks the server where only a token is known."""
        return self.person or str(self.client().whoami()["subject"])

    def _token(self) -> str:
        token = os.environ.get("CONSORTIUM_TOKEN")
        if token:
            return token
        if self._server:
            raise AuthError(
                "no token", where="$CONSORTIUM_TOKEN", fix="set it to a bearer token for $CONSORTIUM_SERVER"
            )
        path = self._of("token_paths")
        try:
            return Path(path).read_text().strip()
        except OSError as fault:
            raise AuthError(f"cannot read the token of {self.person}: {fault.strerror}", where=path) from fault

    def _of(self, table: str) -> str:
        paths: dict[str, str] = self._known[table]
        if self.person not in paths:
            raise NotFoundError(
                f"nobody is called {self.person!r}", where="--as", fix=f"one of {', '.join(sorted(paths))}"
            )
        return paths[self.person]

    def _default(self, partner: str, role: str) -> str:
        """The person with `role` of `partner` (else of the default person's partner)."""
        default = str(self._known["default_person"])
        people: dict[str, list[str]] = self._known["roles"]
        for home in (partner, default[:2]):
            fitting = sorted(p for p, roles in people.items() if p[:2] == home and role in roles)
            if fitting:
                return fitting[0]
        return default


def named_server() -> str:
    """Return the server that `$CONSORTIUM_SERVER` names; empty where commands speak to the federation here."""
    return os.environ.get("CONSORTIUM_SERVER", "")


def _current() -> dict[str, Any]:
    from consortium.local.paths import home, unusable

    path = home() / "current" / "client.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except FileNotFoundError as fault:
        raise NotFoundError(
            "there is no federation here",
            where=str(home()),
            fix="start one with `consortium up`, or set $CONSORTIUM_SERVER and $CONSORTIUM_TOKEN",
        ) from fault
    except OSError as fault:
        raise unusable(fault) from fault
    except json.JSONDecodeError as fault:
        raise ConfigError(f"cannot read it: {fault}", where=str(path)) from fault


def check_job_id(job: str) -> str:
    """Return a job id; raises UsageError where it is none."""
    if not job.startswith("job-"):
        raise UsageError(f"{job!r} is not a job id", fix="ids look like job-…; `consortium jobs` lists them")
    return job
