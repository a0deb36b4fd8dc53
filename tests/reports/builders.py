"""A small federation's records in a real ledger: usage, leases, crossings, a round, datasets; for reports."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from consortium.accounting.periods import bounds, period_of
from consortium.domain.codec import to_json
from consortium.domain.data import ArtifactClass, Crossing, CrossingSide, Dataset, Shard
from consortium.domain.partner import Flavor, Node, Site
from consortium.domain.records import Record, RecordType, UsageRow
from consortium.domain.training import Commit, Round, RoundPhase, Standing, Verdict
from consortium.keys.signing import SigningKey, sign_value
from consortium.keys.trust import SiteKeys, Trust
from consortium.ledger.log import Ledger
from consortium.ledger.origins import ChainHead, after, make_record, record_id
from consortium.reports.build import build_report
from consortium.train.rounds import certify

PERIOD = "2026-03"
START = bounds(PERIOD)[0]
HOUR = 3_600_000
NAME = "consortium.test/log"
FACTORS = {"fr-1": ("h100-sxm", "1.0"), "de-1": ("a100-80g", "0.312"), "uy-1": ("a100-40g", "0.3")}


def site(site_id: str) -> Site:
    flavor_id, factor = FACTORS[site_id]
    flavor = Flavor(
        id=flavor_id, memory_bytes=80 << 30, peak_tflops="989", measured_tflops="600", board_power_w=700,
        reference_factor=factor, factor_version="declared-1",
    )  # fmt: skip
    node = Node(id=f"{site_id}-n1", gpus=8)
    return Site(id=site_id, partner=site_id[:2], territory=site_id[:2], flavor=flavor, nodes=(node,))


@dataclass
class World:
    """Keys and chains of everybody, and the records in the order they were made."""

    keys: dict[str, SigningKey] = field(
        default_factory=lambda: {o: SigningKey.generate() for o in ("server", *FACTORS)}
    )
    heads: dict[str, ChainHead] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)
    sums: dict[tuple[str, str, str], dict[str, int]] = field(default_factory=dict)

    @property
    def trust(self) -> Trust:
        people = {s[:2]: self.keys[s].public for s in FACTORS}
        sites = {s: SiteKeys(signing=self.keys[s].public, sealing=self.keys[s].public) for s in FACTORS}
        server = self.keys["server"].public
        return Trust(log_name=NAME, log_key=server, server_key=server, partners=people, sites=sites)

    @property
    def sites(self) -> list[Site]:
        return [site(site_id) for site_id in FACTORS]

    def add(self, origin: str, kind: RecordType, body: dict[str, Any], at_ms: int = START) -> Record:
        head = self.heads.get(origin, ChainHead())
        record = make_record(self.keys[origin], origin=origin, head=head, type=kind, at_ms=at_ms, body=to_json(body))
        self.heads[origin] = after(record)
        self.records.append(record)
        return record

    def running(self, origin: str, family: str, period: str, **more: int) -> dict[str, int]:
        sums = self.sums.setdefault((origin, family, period), dict.fromkeys(more, 0))
        for name, value in more.items():
            sums[name] += value
        return dict(sums)

    def usage(self, *rows: UsageRow) -> Record:
        period, origin = period_of(rows[0].start_ms), rows[0].site
        cumulative = self.running(origin, "usage", period, rows=len(rows), gpu_ms=sum(row.gpu_ms for row in rows))
        return self.add(origin, RecordType.USAGE, {"period": period, "rows": rows, "cumulative": cumulative})

    def lease(self, row: UsageRow, late_ms: int = 300) -> Record:
        body = {name: getattr(row, name) for name in ("leg", "epoch", "job", "account", "site", "flavor", "gpus")}
        body |= {"offered_ms": 1, "held_ms": 2, "start_ms": row.start_ms, "state": "succeeded", "reason": ""}
        body |= {"running_ms": row.start_ms + late_ms, "final_ms": row.end_ms + late_ms}
        return self.add("server", RecordType.LEASE, body)

    def crossing(self, origin: str, *items: Crossing) -> Record:
        sums = self.running(
            origin, "crossing", PERIOD, count=sum(i.count for i in items), size_bytes=sum(i.size_bytes for i in items)
        )
        return self.add(origin, RecordType.CROSSING, {"period": PERIOD, "crossings": items, "cumulative": sums})

    def passage(self, sender: str, recipient: str, digest: str, size: int, job: str) -> None:
        item = Crossing(
            sender=sender, recipient=recipient, side=CrossingSide.RELEASE, artifact_class=ArtifactClass.PSEUDO_GRADIENT,
            size_bytes=size, count=1, digest=digest, job=job, at_ms=START,
        )  # fmt: skip
        self.crossing(sender, item)
        self.crossing(recipient, replace(item, side=CrossingSide.RECEIPT))

    def round(
        self, job: str, number: int, tokens: dict[str, int], at_ms: int = START, standing: Standing | None = None
    ) -> Record:
        commits = [
            sign_value(
                self.keys[s],
                Commit(
                    job=job, round=number, site=s, tokens=count, steps=20, digest=f"sha256:{s}", norm=(1.5).hex(),
                    loss=(4.25).hex(),
                ),
            )
            for s, count in tokens.items()
        ]  # fmt: skip
        verdicts = [
            sign_value(
                self.keys[judge],
                Verdict(job=job, round=number, judge=judge, site=c.site, digest=c.digest, accept=True),
            )
            for judge in tokens
            for c in commits
        ]
        implied = certify(job, number, "sha256:before", commits, verdicts, standing=standing)
        certificate = sign_value(self.keys["server"], implied)
        closed = Round(
            job=job, number=number, phase=RoundPhase.CLOSED, expected=tuple(tokens), commits=tuple(commits),
            verdicts=tuple(verdicts), certificate=certificate, outer_digests=dict.fromkeys(tokens, "sha256:after"),
        )  # fmt: skip
        body = {"job": job, "round": to_json(closed), "signed": self.agreed(closed)}
        return self.add("server", RecordType.ROUND, body, at_ms)

    def agreed(self, round_: Round) -> dict[str, dict[str, str]]:
        """What sites sign of a round's outer state: digest and signature of each."""
        said = {}
        for site, digest in (round_.outer_digests or {}).items():
            statement = {"job": round_.job, "topic": f"outer/{round_.number}", "site": site, "digest": digest}
            signed = sign_value(self.keys[site], statement | {"signature": ""})
            said[site] = {"digest": digest, "signature": signed["signature"]}
        return said

    def log(self, folder: Path) -> Ledger:
        ledger = Ledger(folder, self.keys["server"], NAME)
        ledger.append([(record_id(record), record) for record in self.records])
        return ledger

    def report(self, folder: Path, partner: str = "fr") -> dict[str, Any]:
        """The report on a partner for `PERIOD`, from a log in `folder`."""
        with self.log(folder) as log:
            return build_report(
                partner=partner, period=PERIOD, log=log, sites=self.sites, trust=self.trust, key=self.keys["server"],
                made_ms=1_777_000_000_123,
            )  # fmt: skip


def row(leg: str, site_id: str, account: str, start: int, end: int, gpus: int = 8) -> UsageRow:
    return UsageRow(
        leg=f"leg-{leg}", epoch="1.1", job=f"job-{leg}", account=account, site=site_id, flavor=FACTORS[site_id][0],
        gpus=gpus, start_ms=START + start, end_ms=START + end,
    )  # fmt: skip


def dataset(name: str, site_id: str) -> Dataset:
    shard = Shard(key=f"{name}/0", digest="sha256:d", size_bytes=12345, documents=67, tokens=89)
    return Dataset(
        id=f"ds-{name}", name=name, version=1, site=site_id, territory=site_id[:2], artifact_class=ArtifactClass.RAW,
        languages=(site_id[:2],), licence="etalab-2.0", source="legifrance", shards=(shard,),
    )  # fmt: skip


def example() -> World:
    """Make France deliver 12 GPU-hours (4 of them to Germany) and consume 16, in March 2026."""
    world = World()
    own, borrowed = row("a", "fr-1", "fr", 0, HOUR), row("b", "fr-1", "de", HOUR, HOUR + HOUR // 2)
    away = row("c", "de-1", "fr/health", 0, HOUR)
    world.usage(row("z", "fr-1", "fr", -HOUR, -1))
    world.usage(replace(own, end_ms=START + HOUR // 3))
    world.usage(replace(own, start_ms=START + HOUR // 3), borrowed)
    world.usage(row("y", "de-1", "de", 0, 5), away)
    world.usage(row("x", "uy-1", "uy", 0, HOUR))
    for item in (own, borrowed, away):
        world.lease(item)
    world.add("server", RecordType.DATASET, {"dataset": dataset("laws-fr", "fr-1"), "job": "", "leg": ""})
    world.add("server", RecordType.DATASET, {"dataset": dataset("laws-de", "de-1"), "job": "", "leg": ""})
    world.passage("fr-1", "de-1", "sha256:1", 1001, "job-t")
    world.passage("de-1", "fr-1", "sha256:2", 2002, "job-t")
    world.passage("de-1", "uy-1", "sha256:3", 3003, "job-t")
    calls = Crossing(
        sender="fr-1", recipient="consortium", side=CrossingSide.RELEASE, artifact_class=ArtifactClass.CONTROL,
        size_bytes=444, count=5, digest="", job="", at_ms=START,
    )  # fmt: skip
    world.crossing("fr-1", calls)
    world.round("job-t", 1, {"de-1": 3000, "fr-1": 1000})
    world.add("server", RecordType.DECISION, {"job": "job-t", "state": "succeeded"})
    return world
