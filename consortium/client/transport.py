"""One HTTP connection to the server: tokens, the protocol header, problem documents back into errors."""

from __future__ import annotations

from typing import Any

import httpx

from consortium import PROTOCOL_VERSION
from consortium.errors import ConsortiumError, UnreachableError, by_slug

HEADER = "Consortium-Protocol"
_AWAY = (502, 503, 504)


class Transport:
    """Calls paths below `/v1`. Raises the leaf of `consortium.errors` that a problem document names, UnreachableError
    where the server does not answer."""

    def __init__(self, url: str, token: str, timeout_s: float) -> None:
        self.url = url.rstrip("/")
        headers = {HEADER: str(PROTOCOL_VERSION)}
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
            raise UnreachableError(
                f"the server does not answer: {str(fault) or type(fault).__name__}",
                where=self.url,
                fix="start it with `consortium up`, or mend the server's address",
            ) from fault
        if answer.is_success:
            return answer
        raise _error(answer)

    def json(self, method: str, path: str, **more: Any) -> Any:
        """Make one call, as `call`, and return the JSON in the answer."""
        answer = self.call(method, path, **more)
        try:
            return answer.json()
        except ValueError as fault:
            raise UnreachableError("what answers there is not a consortium server", where=self.url) from fault


def _error(answer: httpx.Response) -> ConsortiumError:
    try:
        document = answer.json()
        kind = by_slug(str(document["type"]).rpartition(":")[2])
        return kind(str(document["detail"]), where=document.get("where"), fix=document.get("fix"))
    except (ValueError, KeyError, TypeError):
        what = f"{answer.request.method} answered {answer.status_code}: {answer.text[:200]}"
        return (UnreachableError if answer.status_code in _AWAY else ConsortiumError)(
            what, where=str(answer.request.url)
        )
