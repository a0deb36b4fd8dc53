"""What all parts of the gateway share: keys, stores, the line to the server, who a caller is."""

from __future__ import annotations

import hmac
import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from consortium import PROTOCOL_VERSION
from consortium.client.leg import problem_of
from consortium.domain.codec import to_json
from consortium.domain.data import ArtifactClass
from consortium.domain.job import Epoch, LegState
from consortium.domain.protocol import PROTOCOL_HEADER
from consortium.errors import AuthError, UnreachableError
from consortium.keys.sealing import SealingKey
from consortium.keys.signing import SigningKey
from consortium.keys.trust import Trust
from consortium.site.bearer import TokenFile
from consortium.site.db import SiteDb
from consortium.site.documents import Documents
from consortium.site.gateway.peers import PeerStore
from consortium.site.gateway.traffic import Traffic
from consortium.site.legs import LegTable, SiteLeg
from consortium.site.metering import SiteClock
from consortium.site.outbox import Outbox
from consortium.site.rulings import VerifiedRulings
from consortium.site.settings import SiteSettings, StoreSettings
from consortium.storage.objects import ObjectStore

_AT_WORK = (LegState.STARTING, LegState.RUNNING)
MAX_ANSWER_BYTES = 256 << 20
SIGN_OF_LIFE_S = 15.0
"""How often a program's calls are noted at the most."""


class Gateway:
    """One site's gateway, without its HTTP surface. Safe to share by threads."""

    def __init__(self, settings: SiteSettings) -> None:
        self.settings = settings
        self.site = settings.site
        self.trust = Trust.load(settings.trust_path)
        self.clock = SiteClock(time.time_ns() // 1_000_000, time.monotonic)
        self.db = SiteDb(settings.home)
        self.table = LegTable(self.db)
        self.verified = VerifiedRulings(self.db)
        self.key = SigningKey.load(settings.signing_key_path)
        self.sealing = SealingKey.load(settings.sealing_key_path)
        self.outbox = Outbox(self.db, self.site.id, self.key)
        self.documents = Documents(settings.documents_dir, self.site.partner, self.trust)
        self.traffic = Traffic(self.db, self.outbox, self.site.id, self.now_ms)
        self.egress = _store(settings.egress_store)
        self.peers = {site: PeerStore(store) for site, store in settings.peer_egress.items()}
        self._heard: dict[str, float] = {}
        self.token = TokenFile(settings.token_path)
        self.received = Path(settings.home) / "received"
        self.received.mkdir(mode=0o700, exist_ok=True)
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=16)
        timeout = httpx.Timeout(30.0, connect=3.0)
        headers = {PROTOCOL_HEADER: str(PROTOCOL_VERSION)}
        calls = partial(httpx.Client, timeout=timeout, limits=limits, trust_env=False)
        # Where there is no TLS, no certificates are loaded: it takes longer than all else here.
        server_tls, mlflow_tls = (not url.startswith("http://") for url in (settings.server_url, settings.mlflow_url))
        self.server = calls(base_url=settings.server_url, auth=self.token, headers=headers, verify=server_tls)
        self.mlflow = calls(base_url=settings.mlflow_url, verify=mlflow_tls)

    def now_ms(self) -> int:
        """UTC milliseconds of the site's clock."""
        return self.clock.now_ms()

    def leg(self, authorization: str) -> SiteLeg:
        """Return the running leg whose token a caller shows; raises AuthError."""
        token = authorization.removeprefix("Bearer ")
        key, _, _ = token.rpartition(".")
        leg, at, epoch = key.partition("@")
        if not at or not hmac.compare_digest(self.db.leg_token(key).encode(), token.encode()):
            raise AuthError("not the token of a leg of this site")
        found = self.table.get(leg, Epoch.parse(epoch))
        if found is None or not (found.state in _AT_WORK or self._keeps(found)):
            raise AuthError(f"{key} is not running here any more", fix="nothing: a later epoch has taken its place")
        self._sign_of_life(found)
        return found

    def _keeps(self, leg: SiteLeg) -> bool:
        """Whether a leg was told to stop and still has time to keep its progress."""
        return leg.state is LegState.STOPPING and self.now_ms() < leg.stop_by_ms

    def _sign_of_life(self, leg: SiteLeg) -> None:
        """Let the agent know that the program calls; not at every call, because each is a durable write."""
        now_s = time.monotonic()
        if now_s - self._heard.get(leg.key, -SIGN_OF_LIFE_S) >= SIGN_OF_LIFE_S:
            self._heard[leg.key] = now_s
            self.table.change(leg, calls=leg.calls + 1)

    def check_agent(self, authorization: str) -> None:
        """Raise AuthError unless the caller is this site's agent."""
        if not hmac.compare_digest(authorization.encode(), self.token.bearer.encode()):
            raise AuthError("not the token of this site's agent", where=self.site.id)

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        job: str = "",
        params: dict[str, str] | None = None,
        artifact_class: ArtifactClass = ArtifactClass.CONTROL,
    ) -> Any:
        """Call the consortium's server and return its JSON; counted as a crossing.

        Raises UnreachableError where it does not answer, and the error its problem document names.
        """
        content = None if body is None else to_json(body)
        request = self.server.build_request(method, path, json=content, params=params)
        try:
            answer = self.exchange(self.server, request, artifact_class, job)
        except httpx.TransportError as fault:
            raise UnreachableError(
                f"the consortium's server does not answer: {fault or type(fault).__name__}",
                where=self.settings.server_url,
                fix="nothing yet: calls are repeated, and legs go on within their lease",
            ) from fault
        if not answer.is_success:
            raise problem_of(answer)
        try:
            return answer.json() if answer.content else {}
        except (ValueError, RecursionError) as fault:
            raise UnreachableError(
                f"what the consortium's server answered is no JSON: {fault}", where=self.settings.server_url
            ) from fault

    def exchange(
        self, client: httpx.Client, request: httpx.Request, artifact_class: ArtifactClass, job: str
    ) -> httpx.Response:
        """Send a request and return the whole answer, both counted: also what left where no answer came.

        Raises httpx.TransportError, also for an answer that is packed or larger than `MAX_ANSWER_BYTES`.
        """
        request.headers["Accept-Encoding"] = "identity"
        data = bytearray()
        try:
            answer = client.send(request, stream=True)
            try:
                if answer.headers.get("Content-Encoding", "identity") != "identity":
                    raise httpx.RemoteProtocolError("the answer is packed, which was not asked for", request=request)
                for part in answer.iter_raw():
                    data += part
                    if len(data) > MAX_ANSWER_BYTES:
                        what = f"the answer is larger than {MAX_ANSWER_BYTES} bytes"
                        raise httpx.RemoteProtocolError(what, request=request)
            finally:
                answer.close()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
            raise  # nothing left
        except httpx.TransportError:
            self.traffic.count(artifact_class, len(request.content), len(data) or None, job)
            raise
        self.traffic.count(artifact_class, len(request.content), len(data), job)
        return httpx.Response(answer.status_code, headers=answer.headers, content=bytes(data), request=request)

    def close(self) -> None:
        """Record what was counted and close connections."""
        self.traffic.flush()
        self.server.close()
        self.mlflow.close()
        for peer in self.peers.values():
            peer.close()
        self.db.close()


def _store(settings: StoreSettings) -> ObjectStore:
    return ObjectStore(settings.endpoint, settings.access_key, settings.secret(), settings.bucket)
