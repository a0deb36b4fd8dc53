"""The tables. Times are UTC Unix milliseconds; JSON columns hold domain values as `to_json` writes them.

Longer than other files: a list, read by name, which migrations are compared with as one.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()
# Serial numbers are never reused (sqlite_autoincrement): who waits for an inbox item waits for its number.

_Serial = BigInteger().with_variant(Integer(), "sqlite")


def _ms(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False, default=0)


def _text(name: str, *, primary_key: bool = False) -> Column[str]:
    return Column(name, String(255), primary_key=primary_key, nullable=False, default=None if primary_key else "")


meta = Table("meta", metadata, _text("key", primary_key=True), Column("value", Text, nullable=False))
"""Small facts: `incarnation`, `counter`."""

jobs = Table(
    "jobs",
    metadata,
    _text("id", primary_key=True),
    _text("state"),
    _text("kind"),
    _text("account"),
    _text("submitter"),
    _ms("created_ms"),
    _ms("updated_ms"),
    Column("version", Integer, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("spec_digest", String(80), nullable=False, unique=True),
    Column("signature", Text, nullable=False),
    Column("sites", JSON, nullable=False),
    Column("reason", JSON),
    Column("denials", JSON, nullable=False),
    Column("result", JSON, nullable=False),
    _ms("not_before_ms"),
    _text("tracking_run"),
    _text("array"),
    Column("array_index", Integer, nullable=False, default=0),
    _ms("start_by_ms"),
    Column("observed", Boolean, nullable=False, default=False),
    Column("nominated", Boolean, nullable=False, default=False),
    Index("ix_jobs_state", "state", "created_ms"),
    Index("ix_jobs_array", "array"),
    Index("ix_jobs_observed", "observed", "state"),
)
"""`sites`: where the job must run, settled at submission; empty for any one site.

`start_by_ms`: the latest start that meets its deadline; 0 without one. `observed`: whether its run time is counted.
`nominated`: GPUs were taken back for it and it has not been placed since; it is served first.
"""

dependencies = Table(
    "dependencies",
    metadata,
    _text("job", primary_key=True),
    _text("after", primary_key=True),
    Index("ix_dependencies_after", "after"),
)
"""`job` starts once `after` has succeeded."""

attempts = Table(
    "attempts",
    metadata,
    _text("id", primary_key=True),
    _text("job"),
    Column("number", Integer, nullable=False),
    _ms("created_ms"),
    _ms("started_ms"),
    _ms("ended_ms"),
    UniqueConstraint("job", "number"),
)
"""`started_ms` is 0 until the whole gang was told to start, `ended_ms` 0 while the attempt goes on."""

legs = Table(
    "legs",
    metadata,
    _text("id", primary_key=True),
    _text("attempt"),
    _text("job"),
    _text("site"),
    _text("flavor"),
    Column("incarnation", BigInteger, nullable=False),
    Column("counter", BigInteger, nullable=False),
    _text("state"),
    Column("nodes", JSON, nullable=False),
    Column("inputs", JSON, nullable=False),
    Column("tries", Integer, nullable=False),
    _text("fault"),
    Column("reason", Text, nullable=False, default=""),
    _ms("created_ms"),
    _ms("updated_ms"),
    _ms("retry_at_ms"),
    Column("progress", JSON, nullable=False),
    _text("tracking_run"),
    _text("stopping_for"),
    Index("ix_legs_job", "job"),
    Index("ix_legs_state", "state"),
)
"""A leg and its current epoch. `retry_at_ms` above 0: the epoch ended by the site's fault and another one follows.

`stopping_for`: the job that it was evicted for.
"""

epochs = Table(
    "epochs",
    metadata,
    _text("leg", primary_key=True),
    Column("incarnation", BigInteger, primary_key=True),
    Column("counter", BigInteger, primary_key=True),
    _text("job"),
    _text("site"),
    _text("state"),
    _ms("offered_ms"),
    _ms("held_ms"),
    _ms("start_ms"),
    _ms("running_ms"),
    _ms("final_ms"),
    Column("reason", Text, nullable=False, default=""),
    _ms("kept_ms"),
    Index("ix_epochs_job", "job"),
    Index("ix_epochs_final", "final_ms"),
)
"""The server's own book: when it received the first report of each state of each epoch.

`kept_ms`: when its progress last moved; what was done until then need not be done again.
"""

faults = Table(
    "faults",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    _text("job"),
    _text("leg"),
    _text("epoch"),
    _text("site"),
    Column("nodes", JSON, nullable=False),
    _text("fault"),
    Column("reason", Text, nullable=False, default=""),
    _ms("at_ms"),
    Index("ix_faults_job", "job"),
    Index("ix_faults_site", "site", "at_ms"),
    sqlite_autoincrement=True,
)
"""Epochs that ended by the fault of their site or of a node. `nodes`: those that it may have been."""

cordons = Table(
    "cordons",
    metadata,
    _text("site", primary_key=True),
    _text("node", primary_key=True),
    Column("since_ms", BigInteger, primary_key=True),
    _ms("ended_ms"),
    _text("by"),
    Column("reason", Text, nullable=False, default=""),
)
"""Nodes that take no new legs, and those that took none; `ended_ms` is 0 while one lasts."""

windows = Table(
    "windows",
    metadata,
    _text("id", primary_key=True),
    _text("site"),
    _text("kind"),
    Column("nodes", JSON, nullable=False),
    _ms("start_ms"),
    _ms("end_ms"),
    _text("account"),
    _text("by"),
    _ms("created_ms"),
    _ms("removed_ms"),
    Index("ix_windows_end", "end_ms"),
)
"""Intervals in which nodes are set aside; `removed_ms` is 0 unless one was called off."""

datasets = Table(
    "datasets",
    metadata,
    _text("id", primary_key=True),
    _text("name"),
    Column("version", Integer, nullable=False),
    _text("site"),
    Column("doc", JSON, nullable=False),
    _text("job"),
    _text("leg"),
    _text("signer"),
    Column("signature", Text, nullable=False, default=""),
    _ms("created_ms"),
    UniqueConstraint("name", "version"),
)
"""`job` and `leg` wrote it, or the person `signer` registered it: `signature` is over `doc`."""

sites = Table(
    "sites",
    metadata,
    _text("id", primary_key=True),
    _text("state"),
    Column("healthy", Boolean, nullable=False, default=False),
    Column("unhealthy_reason", Text, nullable=False, default=""),
    _text("code_digest"),
    _text("policy_digest"),
    _ms("last_contact_ms"),
    _ms("withdraw_ms"),
)
"""`last_contact_ms` is written when something about the site changes, not at every poll.

`withdraw_ms`: when the notice of its recall ends; 0 where it is not recalled.
"""

records = Table(
    "records",
    metadata,
    _text("origin", primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    _text("record_id"),
    _text("type"),
    _ms("at_ms"),
    Column("payload", JSON, nullable=False),
    Column("ledger_index", BigInteger),
    UniqueConstraint("record_id"),
    Index("ix_records_type", "type", "at_ms"),
)
"""All records, as signed by their origin; `ledger_index` follows once the ledger has them."""

chains = Table(
    "chains",
    metadata,
    _text("origin", primary_key=True),
    Column("next_seq", BigInteger, nullable=False),
    _text("head"),
)
"""Where each origin's chain of records stands: the next number, the digest of the last record."""

outbox = Table(
    "outbox",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    _text("record_id"),
    sqlite_autoincrement=True,
)
"""Records on their way to the ledger, in order."""

inbox = Table(
    "inbox",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    _text("kind"),
    Column("payload", JSON, nullable=False),
    _ms("received_ms"),
    sqlite_autoincrement=True,
)
"""Acknowledged submissions, reports and cancellations that the scheduler loop has yet to fold in."""

usage = Table(
    "usage",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    _text("leg"),
    _text("epoch"),
    Column("start_ms", BigInteger, nullable=False),
    Column("end_ms", BigInteger, nullable=False),
    _text("job"),
    _text("account"),
    _text("site"),
    _text("flavor"),
    Column("gpus", Integer, nullable=False),
    _text("origin"),
    Column("seq", BigInteger, nullable=False),
    _text("conflict"),
    Index("ix_usage_leg", "leg", "site"),
    sqlite_autoincrement=True,
)
"""Rows of the sites' usage records.

`conflict` is empty for those that count. Else it names the record of the site with an earlier row of the same stretch
(`fr-1:12`), or in what the row differs from the leg's lease.
"""

crossings = Table(
    "crossings",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    _text("sender"),
    _text("recipient"),
    _text("side"),
    _text("artifact_class"),
    Column("size_bytes", BigInteger, nullable=False),
    Column("count", BigInteger, nullable=False),
    _text("digest"),
    _text("job"),
    _ms("at_ms"),
    _text("origin"),
    Column("seq", BigInteger, nullable=False),
    Index("ix_crossings_at", "at_ms"),
    sqlite_autoincrement=True,
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    _text("job"),
    _text("sender"),
    _text("digest"),
    _text("name"),
    Column("round", Integer, nullable=False),
    _text("key"),
    Column("doc", JSON, nullable=False),
    _ms("at_ms"),
    UniqueConstraint("job", "sender", "key"),
    sqlite_autoincrement=True,
)

artifact_recipients = Table(
    "artifact_recipients",
    metadata,
    Column("artifact", BigInteger, primary_key=True, autoincrement=False),
    _text("site", primary_key=True),
)

rounds = Table(
    "rounds",
    metadata,
    _text("job", primary_key=True),
    Column("number", Integer, primary_key=True),
    _text("phase"),
    Column("expected", JSON, nullable=False),
    Column("fixed", JSON, nullable=False),
    Column("certificate", JSON),
    Column("settlement", JSON),
    _ms("deadline_ms"),
)
"""`fixed`: sites whose commits make the round, once it is judged. `deadline_ms` is 0 until something waits on it.

`settlement`: how a dispute over the outer state ended, where there was one.
"""

commits = Table(
    "commits",
    metadata,
    _text("job", primary_key=True),
    Column("round", Integer, primary_key=True),
    _text("site", primary_key=True),
    Column("doc", JSON, nullable=False),
    _text("epoch"),
    _ms("at_ms"),
)
"""`epoch`: of the leg that committed; a leg started anew may commit again while its round is open."""

verdicts = Table(
    "verdicts",
    metadata,
    _text("job", primary_key=True),
    Column("round", Integer, primary_key=True),
    _text("judge", primary_key=True),
    _text("site", primary_key=True),
    Column("doc", JSON, nullable=False),
    _text("epoch"),
    _ms("at_ms"),
)

rulings = Table(
    "rulings",
    metadata,
    _text("job", primary_key=True),
    Column("round", Integer, primary_key=True),
    _text("site", primary_key=True),
    _text("action", primary_key=True),
    Column("doc", JSON, nullable=False),
    _ms("at_ms"),
)
"""What admins ruled on sites' parts in rounds: signed, for rounds whose commits were not fixed yet."""

additions = Table(
    "additions",
    metadata,
    _text("job", primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("doc", JSON, nullable=False),
    Column("before_digest", String(80), nullable=False),
    Column("round", Integer, nullable=False),
    _ms("at_ms"),
)
"""Amended specs of trainings, signed, that add sites; the spec before stays known by its digest, and starts no job."""

agreements = Table(
    "agreements",
    metadata,
    _text("job", primary_key=True),
    _text("topic", primary_key=True),
    _text("site", primary_key=True),
    _text("digest"),
    Column("signature", Text, nullable=False),
    _ms("at_ms"),
)

logs = Table(
    "logs",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    _text("job"),
    _text("leg"),
    _text("site"),
    Column("offset", BigInteger, nullable=False),
    Column("text", Text, nullable=False),
    _ms("at_ms"),
    Index("ix_logs_job", "job", "id"),
    Index("ix_logs_leg", "leg", "offset"),
    sqlite_autoincrement=True,
)

idempotency = Table(
    "idempotency",
    metadata,
    _text("subject", primary_key=True),
    _text("key", primary_key=True),
    _text("spec_digest"),
    _text("job"),
)

tracking_tasks = Table(
    "tracking_tasks",
    metadata,
    Column("id", _Serial, primary_key=True, autoincrement=True),
    _text("kind"),
    _text("job"),
    _text("leg"),
    Column("payload", JSON, nullable=False),
    Column("tries", Integer, nullable=False, default=0),
    sqlite_autoincrement=True,
)
"""What the tracking server has yet to be told, in order; kept while it is away."""

documents = Table(
    "documents",
    metadata,
    _text("kind", primary_key=True),
    _text("partner", primary_key=True),
    _text("file", primary_key=True),
    Column("version", Integer, nullable=False),
    _text("digest"),
    Column("doc", JSON, nullable=False),
)
"""The signed policies, rosters, sites and quotas as last loaded; a change is recorded in the ledger."""

history = Table(
    "history",
    metadata,
    _text("account", primary_key=True),
    Column("borrowed", BigInteger, nullable=False),
    Column("lent", BigInteger, nullable=False),
)
"""What accounts borrowed and lent, decayed by half-life: reference GPU-milliseconds as of `history_ms` in `meta`."""

run_times = Table(
    "run_times",
    metadata,
    _text("account", primary_key=True),
    Column("shares", JSON, nullable=False),
    Column("errors", JSON, nullable=False),
)
"""What accounts' jobs were seen to run for: counts per bin, as `consortium.scheduler.RunTimes` keeps them."""

approvals = Table(
    "approvals",
    metadata,
    _text("change", primary_key=True),
    _text("replaces", primary_key=True),
    _text("partner", primary_key=True),
    _text("person"),
    Column("signature", Text, nullable=False),
    Column("text", Text, nullable=False),
    _ms("at_ms"),
)
"""Admins' signatures under changes of the quotas: `change` digests the new text, `replaces` the one in force."""
