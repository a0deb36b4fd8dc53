"""One HTTP connection to the server: tokens, the protocol header, problem documents back into errors."""

from __future__ import annotations

from typing import Any, TypeVar

import httpx

from consortium import PROTOCOL_VERSION
from consortium.domain.protocol import PROBLEM_TYPE, PROTOCOL_HEADER
from consortium.errors import ConsortiumError, UnreachableError, by_slug

_AWAY = (429, 502, 503, 504)
T = TypeVar("T")


class Transport:
    """Calls paths below `/v1`.

    Raises the leaf of `consortium.errors` that a problem document names, UnreachableError where no server answers, or
    something that is no consortium server.
    """

    def __init__(self, url: str, token: str, timeout_s: float) -> None:
        self.url = url.rstrip("/")
        headers = {PROTOCOL_HEADER: str(PROTOCOL_VERSION)}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        try:
            self._http = httpx.Client(
                base_url=f"{self.url}/v1",
                headers=headers,
                timeout=httpx.Timeout(timeout_s, connect=min(5.0, timeout_s)),
                trust_env=False,
                verify=not self.url.startswith("http://"),  # without TLS there is no certificate: do not load a store
            )
        except (httpx.InvalidURL, ValueError) as fault:
            raise UnreachableError(f"not a server's address: {fault}", where=url) from fault

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: dict[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> httpx.Response:
        """Make one call and return the answer, a success; `timeout_s` where it may take longer than others."""
        try:
            given = {key: value for key, value in (query or {}).items() if value not in (None, "")}
            patience = httpx.USE_CLIENT_DEFAULT if timeout_s is None else timeout_s
            answer = self._http.request(method, path, json=body, params=given, timeout=patience)
        except (httpx.TransportError, httpx.InvalidURL) as fault:
            what = f"the server does not answer: {str(fault) or type(fault).__name__}"
            if method != "GET" and not isinstance(fault, httpx.ConnectError | httpx.ConnectTimeout | httpx.InvalidURL):
                what += "; it may have done all the same what it was asked: look before you ask again"
            raise UnreachableError(
                what,
                where=self.url,
                fix="start it with `consortium up`, or mend the server's address",
            ) from fault
        except httpx.DecodingError as fault:
            raise stranger(self.url) from fault
        if not answer.is_success:
            raise self._error(answer)
        if PROTOCOL_HEADER not in answer.headers:
            raise stranger(self.url)
        return answer

    def json(self, shape: type[T], method: str, path: str, **more: Any) -> T:
        """Make one call, as `call`, and return the JSON in the answer, which is a `shape`: a dict or a list."""
        answer = self.call(method, path, **more)
        try:
            found = answer.json()
        except ValueError as fault:
            raise stranger(self.url) from fault
        if not isinstance(found, shape):
            raise stranger(self.url)
        return found

    def _error(self, answer: httpx.Response) -> ConsortiumError:
        if answer.headers.get("content-type", "").partition(";")[0] != PROBLEM_TYPE:
            if answer.status_code in _AWAY:  # said by what stands before the server
                what = f"the server is away: {answer.request.method} answered {answer.status_code}"
                return UnreachableError(what, where=self.url, fix="try again, or ask who runs it")
            return stranger(self.url, f"; {answer.request.method} answered {answer.status_code}")
        try:
            document = answer.json()
            kind, detail = by_slug(str(document["type"]).rpartition(":")[2]), str(document["detail"])
        except (ValueError, KeyError, TypeError):
            return stranger(self.url)
        beyond = httpx.URL(self.url).path.rstrip("/")
        if beyond and detail == f"there is no {answer.request.url.path}":
            return UnreachableError(
                f"the server answers, and has nothing below {beyond}",
                where=self.url,
                fix=f"leave {beyond} off the server's address",
            )
        return kind(detail, where=document.get("where"), fix=document.get("fix"))


def stranger(url: str, said: str = "") -> UnreachableError:
    """Return the error for an address where something else answers; `said` is what."""
    return UnreachableError(
        f"what answers at {url} is not a consortium server{said}",
        where=url,
        fix="check the server's address, or ask who runs what stands before it",
    )
