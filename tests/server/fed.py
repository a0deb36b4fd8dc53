"""A server with scripted sites: people with keys and tokens, their calls, and what sites say."""

from __future__ import annotations

import functools
import json
import secrets
import signal
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from consortium.config import compose_job
from consortium.config.federation import load_federation
from consortium.domain import ids
from consortium.domain.codec import from_json, to_json
from consortium.domain.data import ArtifactClass, Dataset, Shard
from consortium.domain.job import JobKind, JobSpec, Resources
from consortium.domain.partner import Person, Role
from consortium.domain.records import Record
from consortium.keys.canonical import canonical, digest
from consortium.keys.documents import SignedDocument, save_document, sign_document
from consortium.keys.signing import SigningKey, sign_value
from consortium.keys.tokens import issue
from consortium.keys.trust import SiteKeys, Trust
from consortium.local.ports import free_ports
from tests.server.scripted import ScriptedSite, now_ms, until

ROLES = {
    "fr/amelie": Role.ENGINEER,
    "fr/bruno": Role.ADMIN,
    "fr/claire": Role.AUDITOR,
    "uy/alma": Role.ENGINEER,
    "uy/bruno": Role.ADMIN,
    "de/anna": Role.ENGINEER,
    "de/bernd": Role.ADMIN,
}


YEAR_MS = 366 * 86_400_000


ROOT = Path(__file__).parents[2]


def new_id(prefix: str) -> str:
    return ids.make_id(prefix, now_ms(), secrets.token_bytes(10))


@functools.cache
def _composed(kind: str) -> str:
    return json.dumps(compose_job(kind).params)


def params(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_composed(kind))
    return found


@dataclass
class Fed:
    """A federation directory with everybody's keys, and the server process on it."""

    home: Path
    server_key: SigningKey
    people: dict[str, SigningKey]
    partners: dict[str, SigningKey]
    site_keys: dict[str, SigningKey]
    trust: Trust
    settings: dict[str, Any]
    process: subprocess.Popen[bytes] | None = None
    sites: dict[str, ScriptedSite] = field(default_factory=dict)
    http: httpx.Client = field(default_factory=lambda: httpx.Client(trust_env=False, verify=False))

    params = staticmethod(params)
    until = staticmethod(until)
    new_id = staticmethod(new_id)
    to_json = staticmethod(to_json)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings['port']}"

    @property
    def config(self) -> Path:
        return self.home / "server" / "config.json"

    def write_settings(self) -> None:
        self.config.write_text(json.dumps(self.settings))

    def start(self, expect: int | None = None) -> subprocess.CompletedProcess[bytes] | None:
        self.write_settings()
        command = [sys.executable, "-m", "consortium.server", "--config", str(self.config)]
        if expect is not None:
            return subprocess.run(command, capture_output=True, timeout=60, cwd=ROOT, check=False)
        log = open(self.home / "server.log", "ab")  # noqa: SIM115
        self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        try:
            until(self._up, 30)
        except AssertionError as fault:
            self.kill()
            raise AssertionError(f"the server does not start: {self.log()[-2000:]}") from fault
        return None

    def _up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log()[-3000:]
        try:
            return self.http.get(self.url + "/v1/health", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    def log(self) -> str:
        path = self.home / "server.log"
        return path.read_text() if path.exists() else ""

    def kill(self, how: int = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(how)
        code = self.process.wait(30)
        self.process = None
        return code

    def token(self, subject: str, roles: tuple[Role, ...], expires_ms: int | None = None) -> str:
        expires = now_ms() + YEAR_MS if expires_ms is None else expires_ms
        return issue(self.server_key, subject, roles, ids.partner_of(subject), expires)

    def call(self, who: str, method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        token = self.token(who, (ROLES.get(who, Role.SITE),))
        return self.http.request(
            method, self.url + path, json=body, headers={"Authorization": f"Bearer {token}"}, timeout=20, **more
        )

    def get(self, path: str, who: str = "fr/amelie") -> Any:
        answer = self.call(who, "GET", path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def sign(self, kind: str, partner: str, **changes: Any) -> SignedDocument:
        """Have a partner sign its document anew, with changes."""
        path = self.home / "documents" / f"{kind}-{partner}.json"
        document = replace(from_json(SignedDocument, json.loads(path.read_text())), **changes)
        if "expires_ms" not in changes:
            document = replace(document, expires_ms=now_ms() + YEAR_MS)
        signed = sign_value(self.partners[partner], document)
        save_document(signed, path)
        return signed

    def sign_site(self, site: str, old: str, new: str) -> None:
        """Have a partner sign a site's file anew, with `new` in the place of `old`."""
        path = self.home / "documents" / f"site-{site}.json"
        document = from_json(SignedDocument, json.loads(path.read_text()))
        assert old in document.text
        save_document(
            sign_value(self.partners[document.partner], replace(document, text=document.text.replace(old, new))), path
        )

    def new_dataset(self, site: str, name: str, **changes: Any) -> Dataset:
        """A dataset that nobody registered yet."""
        partner = ids.partner_of(site)
        shard = Shard(key=f"raw/{name}", digest=digest(name.encode()), size_bytes=1000, documents=10)
        dataset = Dataset(
            id=new_id("ds"),
            name=name,
            version=self._next_version(name),
            site=site,
            territory=partner,
            artifact_class=ArtifactClass.RAW,
            languages=(partner,),
            licence="CC0-1.0",
            source="test",
            shards=(shard,),
        )
        return replace(dataset, **changes)

    def dataset(self, site: str, name: str, cls: ArtifactClass = ArtifactClass.RAW, **changes: Any) -> Dataset:
        """A dataset, registered by an engineer of its partner."""
        dataset = self.new_dataset(site, name, artifact_class=cls, **changes)
        who = {"fr": "fr/amelie", "de": "de/anna", "uy": "uy/alma"}[dataset.partner]
        body = {"dataset": to_json(dataset), "signature": self.people[who].sign(canonical(dataset))}
        answer = self.call(who, "POST", "/v1/datasets", body)
        assert answer.status_code == 201, answer.text
        return dataset

    def _next_version(self, name: str) -> int:
        return max((item["version"] for item in self.get(f"/v1/datasets?name={name}")), default=0) + 1

    def spec(self, inputs: list[Dataset], **changes: Any) -> JobSpec:
        base = JobSpec(
            kind=JobKind.CLEAN,
            name="clean-laws",
            account="fr",
            submitter="fr/amelie",
            purpose="language-model",
            inputs=tuple(item.id for item in inputs),
            resources=Resources(gpus=2, walltime_s=600),
            params=params("clean"),
            code_digest="sha256:test",
            submitted_ms=now_ms(),
            nonce=secrets.token_hex(8),
        )
        return replace(base, **changes)

    def submit(self, spec: JobSpec, **more: Any) -> httpx.Response:
        signature = self.people[spec.submitter].sign(canonical(spec))
        body = {"spec": to_json(spec), "signature": signature} | more
        return self.call(spec.submitter, "POST", "/v1/jobs", body)

    def job(self, job: str) -> dict[str, Any]:
        return self.get(f"/v1/jobs/{job}")

    def entries(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = self.get(f"/v1/log/entries?start={len(found)}&count=1000")
            if not page["entries"]:
                return found
            found += page["entries"]

    def records(self, origin: str) -> list[dict[str, Any]]:
        return [e["payload"] for e in self.entries() if e["payload"]["origin"] == origin]

    def typed(self, origin: str) -> list[Record]:
        """The records of an origin in the ledger, in its order."""
        return [from_json(Record, payload) for payload in self.records(origin)]

    def site(self, name: str) -> ScriptedSite:
        """The site of that name, polled once so that the server knows it is there."""
        self.scripted(name).poll()
        return self.sites[name]

    def scripted(self, name: str) -> ScriptedSite:
        """The site of that name, whether there is a server to poll or not."""
        if name not in self.sites:
            self.sites[name] = ScriptedSite(fed=self, name=name, key=self.site_keys[name])
        return self.sites[name]


def make_fed(home: Path) -> Fed:
    """Make keys, signed documents and settings of the repository's own federation under `home`."""
    config = load_federation(ROOT / "configs", ROOT / "clusters")
    (home / "documents").mkdir(parents=True)
    (home / "server").mkdir()
    server_key = SigningKey.generate()
    partners = {partner.id: SigningKey.generate() for partner in config.partners}
    sites = {site.id: SigningKey.generate() for site in config.sites}
    people = {person.id: SigningKey.generate() for person in config.people}
    server_key.save(home / "server" / "server.key")
    trust = Trust(
        log_name="consortium.test/log",
        log_key=server_key.public,
        server_key=server_key.public,
        partners={name: key.public for name, key in partners.items()},
        sites={name: SiteKeys(signing=key.public, sealing=key.public) for name, key in sites.items()},
    )
    trust.save(home / "trust.json")

    def put(kind: str, owner: str, key: SigningKey, partner: str, file: str, text: str) -> None:
        document = sign_document(key, kind=kind, partner=partner, version=1, issued_ms=now_ms(),
                                 expires_ms=now_ms() + YEAR_MS, file=file, text=text)  # fmt: skip
        save_document(document, home / "documents" / f"{kind}-{owner}.json")

    for name, key in partners.items():
        file = config.text("policy", name)
        put("policy", name, key, name, file.file, file.text)
        listed = [
            Person(id=p.id, name=p.name, roles=p.roles, signing_key=people[p.id].public)
            for p in config.people
            if p.id.startswith(name + "/")
        ]
        put("roster", name, key, name, f"roster/{name}.yaml", json.dumps({"partner": name, "people": to_json(listed)}))
    for site in config.sites:
        file = config.text("site", site.id)
        put("site", site.id, partners[site.partner], site.partner, file.file, file.text)
    file = config.text("quota", "consortium")
    put("quota", "consortium", server_key, "consortium", file.file, file.text)
    settings = {
        "host": "127.0.0.1",
        "port": free_ports(1)[0],
        "database_url": f"sqlite:///{home}/server/state.db",
        "ledger_dir": str(home / "server" / "ledger"),
        "signing_key_path": str(home / "server" / "server.key"),
        "trust_path": str(home / "trust.json"),
        "documents_dir": str(home / "documents"),
        "mlflow_url": f"http://127.0.0.1:{free_ports(1)[0]}",
        "code_digest": "sha256:test",
        "lease_ms": 20_000,
        "max_skew_ms": 200,
        "site_lost_ms": 20_500,
        "cycle_ms": 50,
        "round_grace_ms": 4000,
    }
    return Fed(
        home=home,
        server_key=server_key,
        people=people,
        partners=partners,
        site_keys=sites,
        trust=trust,
        settings=settings,
    )
