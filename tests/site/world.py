"""Two sites (fr-1, de-1) with real keys, signed documents and settings; a server that speaks the real protocol."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import consortium
from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Dataset
from consortium.domain.job import Epoch, JobSpec, LegState, SignedSpec
from consortium.domain.partner import Site
from consortium.domain.protocol import LegCommand, LegOffer, LegReport, PollRequest, PollResponse, Voucher
from consortium.domain.records import Record
from consortium.keys.canonical import canonical
from consortium.keys.code import code_digest
from consortium.keys.documents import DocumentKind, save_document, sign_document
from consortium.keys.sealing import SealingKey
from consortium.keys.signing import SigningKey
from consortium.keys.trust import SiteKeys, Trust
from consortium.ledger.log import Ledger
from consortium.ledger.origins import ChainHead, check_chain, record_id
from consortium.site.settings import SiteSettings, StoreSettings
from tests import builders
from tests.site.http import App, Serving

REPO = Path(__file__).parents[2]
CONFIGS = REPO / "configs"
DAY_MS = 86_400_000
SITE_TOKEN = "token-of-fr-1"


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class World:
    """Keys, documents and settings below `root`; `settings("fr-1")` is what its two processes read."""

    def __init__(self, root: Path, *, jobs_dir: Path | None = None) -> None:
        self.root = root
        self.log_key = SigningKey.generate()
        self.server_key = SigningKey.generate()
        self.partner_keys = {name: SigningKey.generate() for name in ("fr", "de")}
        self.amelie = SigningKey.generate()
        self.signing = {site: SigningKey.generate() for site in ("fr-1", "de-1")}
        self.sealing = {site: SealingKey.generate() for site in ("fr-1", "de-1")}
        self.trust = Trust(
            log_name="test.example/log",
            log_key=self.log_key.public,
            server_key=self.server_key.public,
            partners={name: key.public for name, key in self.partner_keys.items()},
            sites={
                name: SiteKeys(signing=self.signing[name].public, sealing=self.sealing[name].public)
                for name in self.signing
            },
        )
        self.jobs_dir = jobs_dir or REPO / "jobs"
        self.documents = root / "documents"
        self.documents.mkdir(parents=True)
        self.trust.save(root / "trust.json")
        self.sign("roster", "fr", self.roster(), "roster-fr")
        self.sign("policy", "fr", (CONFIGS / "policy" / "fr.yaml").read_text(), "policy-fr")
        for name in ("fr-1", "de-1"):
            raw = (REPO / "clusters" / f"{name}.yaml").read_text()
            self.sign("site", name[:2], raw, f"site-{name}")

    @cached_property
    def code(self) -> str:
        return code_digest(Path(consortium.__file__).parent, self.jobs_dir)

    def roster(self) -> str:
        return (
            "partner: fr\npeople:\n"
            f"  - {{id: fr/amelie, name: Amelie, roles: [engineer], signing_key: '{self.amelie.public}'}}\n"
        )

    def sign(self, kind: str, partner: str, text: str, name: str, *, expires_ms: int | None = None) -> None:
        document = sign_document(
            self.partner_keys[partner],
            kind=DocumentKind(kind),
            partner=partner,
            version=1,
            issued_ms=now_ms(),
            expires_ms=now_ms() + DAY_MS if expires_ms is None else expires_ms,
            file=f"configs/{kind}/{partner}.yaml",
            text=text,
        )
        save_document(document, self.documents / f"{name}.json")

    def site(self, name: str = "fr-1") -> Site:
        return builders.site(name, nodes=(8,), gpu_resource="sim_gpu", territory=name[:2])

    def settings(self, name: str = "fr-1", **changes: Any) -> SiteSettings:
        home = self.root / name
        home.mkdir(exist_ok=True)
        if not (home / "signing.key").exists():
            self.signing[name].save(home / "signing.key")
            self.sealing[name].save(home / "sealing.key")
            (home / "token").write_text(SITE_TOKEN)
            (home / "ray.token").write_text(secrets.token_hex(32))
            (home / "store.key").write_text("secret")
        nowhere = StoreSettings(
            endpoint="http://127.0.0.1:9", bucket="none", access_key="a", secret_path=str(home / "store.key")
        )
        fields: dict[str, Any] = {
            "site": self.site(name),
            "home": str(home),
            "server_url": "http://127.0.0.1:9",
            "mlflow_url": "http://127.0.0.1:9",
            "gateway_url": "http://127.0.0.1:9",
            "gateway_port": 0,
            "token_path": str(home / "token"),
            "signing_key_path": str(home / "signing.key"),
            "sealing_key_path": str(home / "sealing.key"),
            "trust_path": str(self.root / "trust.json"),
            "documents_dir": str(self.documents),
            "ray_dashboard_url": "http://127.0.0.1:9",
            "ray_token_path": str(home / "ray.token"),
            "private_store": nowhere,
            "egress_store": nowhere,
            "peer_egress": {},
            "jobs_dir": str(self.jobs_dir),
        }
        return SiteSettings(**(fields | changes))

    def registered(self, *datasets: Dataset) -> dict[str, Voucher]:
        """The vouchers of datasets that Amelie registered."""
        return {item.id: Voucher(person="fr/amelie", signature=self.amelie.sign(canonical(item))) for item in datasets}

    def signed(self, spec: JobSpec) -> SignedSpec:
        return SignedSpec(spec=spec, signature=self.amelie.sign(canonical(spec)))

    def offer(
        self,
        number: int = 1,
        *,
        epoch: Epoch | None = None,
        kind: str = "clean",
        gpus: int = 2,
        peers: tuple[str, ...] = ("fr-1",),
        inputs: tuple[Dataset, ...] = (),
        nodes: dict[str, int] | None = None,
        **spec: Any,
    ) -> LegOffer:
        fields: dict[str, Any] = {
            "code_digest": self.code,
            "purpose": "language-model",
            "inputs": tuple(item.id for item in inputs),
            "nonce": f"{number:032x}",
        }
        return LegOffer(
            leg=builders.new_id("leg", number),
            job=builders.new_id("job", number),
            attempt=builders.new_id("att", number),
            attempt_number=1,
            epoch=epoch or Epoch(incarnation=1, counter=number),
            site="fr-1",
            peers=peers,
            nodes=nodes or {"n0": gpus},
            spec=self.signed(builders.spec(kind, gpus=gpus, **(fields | spec))),
            inputs=inputs,
            vouchers=self.registered(*inputs),
            tracking_run="run-1",
        )


@dataclass
class Script:
    """What the consortium server says, and what it heard. One lock, one site."""

    ledger: Ledger
    key: str
    lease_ms: int = 15_000
    incarnation: int = 1
    offers: dict[str, LegOffer] = field(default_factory=dict)
    stops: dict[str, LegCommand] = field(default_factory=dict)
    reports: dict[str, LegReport] = field(default_factory=dict)
    history: list[LegReport] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    artifacts: list[Any] = field(default_factory=list)
    logs: list[Any] = field(default_factory=list)
    polls: list[PollRequest] = field(default_factory=list)
    job: Any = None
    """What is said of any job that is asked about."""
    away: bool = False
    hang_s: dict[str, int] = field(default_factory=dict)
    head: dict[str, ChainHead] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    answer: Callable[[PollRequest], Any] = field(init=False)
    """What is sent back for a poll: `poll`'s answer, unless a test puts something else there."""

    def __post_init__(self) -> None:
        self.answer = lambda request: to_json(self.poll(request))

    def report(self, leg: str) -> LegReport | None:
        with self.lock:
            return self.reports.get(leg)

    def poll(self, request: PollRequest) -> PollResponse:
        with self.lock:
            self.polls.append(request)
            for report in request.legs:
                self.reports[report.leg] = report
                self.history.append(report)
            states = {leg: report.state for leg, report in self.reports.items()}
            final = [report for report in request.legs if report.state.final]
            pinned = request.pinned
            size = self.ledger.size
            proof = self.ledger.consistency(pinned.size, size) if pinned and 0 < pinned.size < size else []
            return PollResponse(
                incarnation=self.incarnation,
                protocol=1,
                lease_ms=self.lease_ms,
                checkpoint=self.ledger.checkpoint(),
                consistency=tuple(proof),
                offers=tuple(offer for leg, offer in self.offers.items() if leg not in states),
                starts=tuple(
                    LegCommand(leg=leg, epoch=self.offers[leg].epoch)
                    for leg, state in states.items()
                    if state is LegState.HELD and leg in self.offers
                ),
                stops=tuple(self.stops.values()),
                renewed=tuple(report.leg for report in request.legs if not report.state.final),
                acknowledged=tuple(LegCommand(leg=report.leg, epoch=report.epoch) for report in final),
                acked_seq=len(self.records) - 1,
                hang_s=self.hang_s,
            )

    def take(self, records: list[Record]) -> int:
        with self.lock:
            fresh = [record for record in records if record.seq >= len(self.records)]
            self.head = check_chain(fresh, lambda _: self.key, self.head)
            self.records += fresh
            self.ledger.append([(record_id(record), to_json(record)) for record in fresh])
            return len(self.records) - 1


def consortium_server(script: Script) -> Serving:
    """Serve the script over HTTP, as the consortium's server would."""
    app = App()

    @app.route("POST", r"/v1/sites/fr-1/poll")
    def poll(body: Any, query: dict[str, str]) -> Any:
        return script.answer(from_json(PollRequest, body))

    @app.route("POST", r"/v1/sites/fr-1/records")
    def records(body: Any, query: dict[str, str]) -> Any:
        return {"acked_seq": script.take(from_json(list[Record], body["records"]))}

    @app.route("POST", r"/v1/jobs/[^/]+/artifacts")
    def announce(body: Any, query: dict[str, str]) -> Any:
        with script.lock:
            if body not in script.artifacts:
                script.artifacts.append(body)
        return {}

    @app.route("GET", r"/v1/jobs/[^/]+/artifacts")
    def announced(body: Any, query: dict[str, str]) -> Any:
        to = [artifact for artifact in script.artifacts if query["recipient"] in artifact["recipients"]]
        return [artifact for artifact in to if query.get("round", str(artifact["round"])) == str(artifact["round"])]

    @app.route("GET", r"/v1/jobs/[^/]+")
    def job(body: Any, query: dict[str, str]) -> Any:
        return script.job

    @app.route("POST", r"/v1/jobs/[^/]+/logs")
    def logs(body: Any, query: dict[str, str]) -> Any:
        script.logs.append(body)
        return {}

    app.away = lambda: script.away
    return Serving(app)


def script_for(world: World) -> Script:
    ledger = Ledger(world.root / "ledger", world.log_key, world.trust.log_name)
    return Script(ledger=ledger, key=world.signing["fr-1"].public)
