"""The server's state: one relational database, one writer at a time, every change durable before it is answered.

`Database` opens SQLite or PostgreSQL, brings its schema up to date and keeps a second server away. The modules beside
it are functions over an open connection: `jobs` (jobs, attempts, legs, epochs), `commit` (placements),
`records` (the gapless signed records and the outbox to the ledger), `forms` (what records the server takes of sites),
`usage` (what sites metered, beside what they were leased), `inbox` (what came in and awaits the loop), `data`
(datasets, artifacts, logs), `rounds`, `sites`, `waits` (jobs that wait for others), `shares` (fair-share history, run
times, metered GPU time), `approvals` (signatures under changes of the quotas).
"""

from __future__ import annotations

from consortium.state.database import Connection, Database

__all__ = ["Connection", "Database"]
