"""The agent's line to the consortium's server. It leads through the site's own gateway, which alone calls outside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx

from consortium import PROTOCOL_VERSION
from consortium.client.leg import problem_of
from consortium.domain.codec import from_json, to_json
from consortium.domain.protocol import PROTOCOL_HEADER, PollRequest, PollResponse, RecordsTaken
from consortium.domain.records import Record
from consortium.errors import UnreachableError
from consortium.site.bearer import TokenFile
from consortium.site.settings import SiteSettings

POLL_TIMEOUT_S = 5.0
_BYTES_PER_S = 1 << 20
"""What gateway and server take in at least of a poll that carries large results: each reads, checks and keeps it."""


class ServerLine:
    """Calls of one thread. Every method raises UnreachableError where gateway or server do not answer."""

    def __init__(self, settings: SiteSettings) -> None:
        self.site = settings.site.id
        self._http = httpx.Client(
            base_url=settings.gateway_url,
            auth=TokenFile(settings.token_path),
            headers={PROTOCOL_HEADER: str(PROTOCOL_VERSION)},
            timeout=httpx.Timeout(POLL_TIMEOUT_S, connect=2.0),
            trust_env=False,
            verify=not settings.gateway_url.startswith("http://"),  # without TLS there is no certificate
        )

    def poll(self, request: PollRequest) -> PollResponse:
        """Say what the site is and holds; hear what to do."""
        return from_json(PollResponse, self._post(f"/v1/sites/{self.site}/poll", to_json(request)), where="poll")

    def send_records(self, records: Sequence[Record]) -> int:
        """Send the next records of the chain; return the highest number the server holds."""
        answer = self._post(f"/v1/sites/{self.site}/records", {"records": to_json(list(records))}, timeout_s=30.0)
        return from_json(RecordsTaken, answer, where="records").acked_seq

    def send_log(self, job: str, leg: str, offset: int, text: str) -> None:
        """Send a piece of a leg's log, `offset` in characters. Raises PolicyDeniedError where it must stay here."""
        body = {"leg": leg, "site": self.site, "offset": offset, "text": text}
        self._post(f"/v1/jobs/{job}/logs", body, timeout_s=30.0)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _post(self, path: str, body: Any, timeout_s: float = POLL_TIMEOUT_S) -> Any:
        content = json.dumps(body).encode()
        patience = httpx.Timeout(timeout_s + len(content) / _BYTES_PER_S, connect=2.0)
        try:
            answer = self._http.post(
                path, content=content, headers={"Content-Type": "application/json"}, timeout=patience
            )
        except httpx.TransportError as fault:
            raise UnreachableError(
                f"the gateway does not answer: {fault}",
                where=str(self._http.base_url),
                fix="see the gateway's log; its supervisor restarts it",
            ) from fault
        if not answer.is_success:
            raise problem_of(answer)
        return answer.json() if answer.content else {}
