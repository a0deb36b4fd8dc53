"""The SDK over /v1: one typed method per endpoint."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any
from urllib.parse import quote

from consortium.client.transport import Transport, stranger
from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Dataset
from consortium.domain.job import Job, JobSpec, JobState, SignedSpec
from consortium.domain.training import Round, Ruling
from consortium.errors import UnreachableError
from consortium.train.plot import Curves

Json = dict[str, Any]
ARRAY_MEMBER_S = 0.2
"""How much longer an array may take to submit per member."""
REPORTS = "consortium-report/"
"""What the format of every report begins with."""
SNAPSHOT_S = 300.0
"""How long a snapshot may take: a whole cycle is decided for it."""
REPORT_S = 3600.0
"""How long a report may take: server and verifier check some 500 records a second, and a large one has 400,000."""


class Client:
    """A person's connection to the consortium's server.

    Methods raise the errors of `consortium.errors` that the server's problem documents name, and UnreachableError where
    it does not answer. Usable as a context manager; safe to share by threads.
    """

    def __init__(self, url: str, token: str = "", *, timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._wire = Transport(url, token, timeout_s)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._wire.close()

    # -- operation ------------------------------------------------------------------------------------------------

    def health(self) -> Json:
        """Return the server's version, protocol, incarnation and log size; needs no token."""
        return self._json("GET", "/health")

    def whoami(self) -> Json:
        """Return what the token says: subject, partner, roles, expires_ms."""
        return self._json("GET", "/whoami")

    def federation(self) -> Json:
        """Return partners, sites, trusted keys, signed documents, the code digest."""
        return self._json("GET", "/federation")

    def snapshot(self) -> bytes:
        """Return what the scheduler decides from now and the plan it makes of it, as `snapshot replay` reads them."""
        return self._wire.call("GET", "/snapshot", timeout_s=max(self._timeout_s, SNAPSHOT_S)).content

    def sites(self) -> list[Json]:
        """Return the sites with state, health, GPUs and GPUs held."""
        return self._list("GET", "/sites")

    def drain(self, site: str) -> Json:
        """Let a site finish its legs and take no new ones."""
        return self._json("POST", f"/sites/{quote(site, safe='')}/drain")

    def resume(self, site: str) -> Json:
        """Let a drained or recalled site take legs again."""
        return self._json("POST", f"/sites/{quote(site, safe='')}/resume")

    def withdraw(self, site: str, notice_s: int) -> Json:
        """Recall a site: it takes no leg that would outlive the notice, and what still runs then is stopped."""
        return self._json("POST", f"/sites/{quote(site, safe='')}/withdraw", body={"notice_s": notice_s})

    def cordon(self, site: str, node: str, reason: str = "") -> Json:
        """Let a node take no new legs."""
        path = f"/sites/{quote(site, safe='')}/nodes/{quote(node, safe='')}/cordon"
        return self._json("POST", path, body={"reason": reason})

    def uncordon(self, site: str, node: str) -> Json:
        """End a node's cordon."""
        return self._json("POST", f"/sites/{quote(site, safe='')}/nodes/{quote(node, safe='')}/uncordon")

    def windows(self, site: str = "") -> list[Json]:
        """Return maintenance windows and reservations that are not over, by start."""
        return self._list("GET", "/windows", query={"site": site})

    def plan_window(
        self, site: str, *, kind: str, start_ms: int, end_ms: int, nodes: Iterable[str] = (), account: str = ""
    ) -> Json:
        """Set nodes of a site aside for maintenance, or reserve them for an account; no nodes: all of them."""
        body = {"kind": kind, "start_ms": start_ms, "end_ms": end_ms, "nodes": list(nodes), "account": account}
        return self._json("POST", f"/sites/{quote(site, safe='')}/windows", body=body)

    def call_off(self, window: str) -> Json:
        """Call a window off, or end one that has begun."""
        return self._json("DELETE", f"/windows/{quote(window, safe='')}")

    def quota(self) -> Json:
        """Return accounts with their quotas, budgets and how they stand, pledges, run-time estimates, the document."""
        return self._json("GET", "/quota")

    def quota_plan(self, text: str) -> Json:
        """Return what the text of a quota file would change, whose consent it needs, its effect on the queue."""
        return self._json("POST", "/quota/plan", body={"text": text})

    def quota_apply(self, text: str, *, replaces: str, signature: str) -> Json:
        """Consent to a change of the quotas; return which consents are missing, and the `version` once it is in force.

        `replaces` is the digest of the document in force, `signature` the caller's over the `QuotaApproval` of both.
        """
        body = {"text": text, "replaces": replaces, "signature": signature}
        return self._json("POST", "/quota/apply", body=body)

    def shares(self) -> list[Json]:
        """Return per account and flavor the GPUs nominal, held, borrowed and lent, and the factors of fair share."""
        return self._list("GET", "/shares")

    # -- jobs -----------------------------------------------------------------------------------------------------

    def submit(self, signed: SignedSpec, *, idempotency_key: str = "") -> Job:
        """Submit a signed spec; return the job: `pending`, or `denied` with its denials."""
        body = _submission(signed) | {"idempotency_key": idempotency_key}
        return from_json(Job, self._json("POST", "/jobs", body=body), where="job")

    def submit_array(self, members: Sequence[SignedSpec], *, idempotency_key: str = "") -> list[Job]:
        """Submit all members of a job array, all or none; return them in order of their index."""
        body = {"members": [_submission(signed) for signed in members], "idempotency_key": idempotency_key}
        patience_s = self._timeout_s + len(members) * ARRAY_MEMBER_S
        return from_json(list[Job], self._list("POST", "/jobs/array", body=body, timeout_s=patience_s), where="jobs")

    def dry_run(self, spec: JobSpec | SignedSpec) -> Json:
        """Return what would become of a submission: funnel, a row per site, run time, cost; nothing is stored.

        Neither signature nor nonce are sent, so nobody who sees the request can submit the job.
        """
        said = spec.spec if isinstance(spec, SignedSpec) else spec
        return self._json("POST", "/jobs", body={"spec": to_json(replace(said, nonce="")), "dry_run": True})

    def jobs(
        self, *, states: Iterable[JobState | str] = (), account: str = "", array: str = "", limit: int = 1000
    ) -> list[Job]:
        """Return jobs, oldest first (the newest `limit` of them); an account includes its projects."""
        wanted = ",".join(JobState(state).value for state in states)
        query = {"state": wanted, "account": account, "array": array, "limit": limit}
        found = self._list("GET", "/jobs", query=query)
        return from_json(list[Job], found, where="jobs")

    def job(self, job: str) -> Job:
        """Return a job."""
        return from_json(Job, self._json("GET", f"/jobs/{quote(job, safe='')}"), where=job)

    def explain(self, job: str) -> Json:
        """Return why a job does not run: reason, denials, funnel."""
        return self._json("GET", f"/jobs/{quote(job, safe='')}/explain")

    def cancel(self, job: str) -> Job:
        """Cancel a job; return it."""
        return from_json(Job, self._json("POST", f"/jobs/{quote(job, safe='')}/cancel"), where=job)

    def logs(self, job: str, *, site: str = "", after: int = 0) -> Json:
        """Return `chunks` of log text after number `after`, `next`, the sites that `withheld` theirs, and `final`."""
        return self._json("GET", f"/jobs/{quote(job, safe='')}/logs", query={"site": site, "after": after})

    def rounds(self, job: str, *, after: int = 0) -> tuple[Round, ...]:
        """Return a job's rounds after number `after`."""
        found = self._list("GET", f"/jobs/{quote(job, safe='')}/rounds", query={"after": after})
        return from_json(tuple[Round, ...], found, where=job)

    def curves(self, job: str) -> Curves:
        """Return a training's losses by round and site, held-out losses, and what each site did when."""
        return from_json(Curves, self._json("GET", f"/jobs/{quote(job, safe='')}/curves"), where=job)

    def attribution(self, job: str) -> Json:
        """Return who brought what to the model of a training: `rounds`, `partners`, what is `retained` for audits."""
        return self._json("GET", f"/jobs/{quote(job, safe='')}/attribution")

    def rulings(self, job: str) -> Json:
        """Return `rulings` of admins in a job, `first_open` round, which takes rulings, and who `committed` to it."""
        return self._json("GET", f"/jobs/{quote(job, safe='')}/rulings")

    def rule(self, ruling: Ruling) -> Json:
        """Give a ruling, signed by the calling admin; return what `rulings` does."""
        return self._json("POST", f"/jobs/{quote(ruling.job, safe='')}/rulings", body=to_json(ruling))

    def add_sites(self, job: str, signed: SignedSpec) -> Json:
        """Add sites to a training by its amended spec; return the `sites` and `inputs` that it adds."""
        return self._json("POST", f"/jobs/{quote(job, safe='')}/additions", body=to_json(signed))

    def wait(self, job: str, *, timeout_s: float = 3600.0, poll_s: float = 0.5, patience_s: float = 60.0) -> Job:
        """Return a job once it is final. A server away for less than `patience_s` is waited for.

        Raises UnreachableError after `timeout_s`.
        """
        for shown in self.watch(job, timeout_s=timeout_s, poll_s=poll_s, patience_s=patience_s):
            if shown.state.final:
                return shown
        raise UnreachableError(f"the job is not final after {timeout_s:.0f} s", where=job)

    def watch(
        self, job: str, *, timeout_s: float = 3600.0, poll_s: float = 0.5, patience_s: float = 60.0
    ) -> Iterator[Job]:
        """Yield a job whenever its state, reason or progress changes, until it is final or `timeout_s` is over."""
        deadline = time.monotonic() + timeout_s
        heard = time.monotonic()
        last: tuple[Any, ...] = ()
        while time.monotonic() < deadline:
            try:
                shown = self.job(job)
                heard = time.monotonic()
            except UnreachableError:
                if time.monotonic() - heard > patience_s:
                    raise
                time.sleep(poll_s)
                continue
            seen = (shown.state, shown.reason, shown.progress)
            if seen != last:
                last = seen
                yield shown
            if shown.state.final:
                return
            time.sleep(poll_s)

    # -- data -----------------------------------------------------------------------------------------------------

    def register_dataset(self, dataset: Dataset, *, signature: str, person: str = "") -> Dataset:
        """Register a dataset. `signature` is the calling person's over its canonical JSON; `person`, where given, says
        whose it is, and the server checks that it is the token's."""
        body = {"dataset": to_json(dataset), "signature": signature, "person": person}
        return from_json(Dataset, self._json("POST", "/datasets", body=body), where=dataset.name)

    def datasets(self, name: str = "") -> tuple[Dataset, ...]:
        """Return all versions of all datasets, or of one name, oldest first."""
        return from_json(tuple[Dataset, ...], self._list("GET", "/datasets", query={"name": name}), where="datasets")

    def dataset(self, id_or_name: str) -> Dataset:
        """Return a dataset by id, `name@version`, or the latest version of a name."""
        return from_json(Dataset, self._json("GET", f"/datasets/{quote(id_or_name, safe='')}"), where=id_or_name)

    def next_version(self, name: str) -> int:
        """Return the version that the next dataset of this name gets."""
        return max((dataset.version for dataset in self.datasets(name)), default=0) + 1

    def trace(self, root: str) -> Json:
        """Return the lineage, back and on, of a dataset (id or name), a job's model, or a shard (`sha256:...`)."""
        return self._json("GET", f"/datasets/{quote(root, safe='')}/trace")

    # -- evidence -------------------------------------------------------------------------------------------------

    def report(self, partner: str, period: str) -> Json:
        """Return the contribution report of a partner for a month `YYYY-MM`."""
        path, patience_s = f"/reports/{quote(partner, safe='')}", max(self._timeout_s, REPORT_S)
        found = self._json("GET", path, query={"period": period}, timeout_s=patience_s)
        if not str(found.get("format")).startswith(REPORTS):
            raise stranger(self.url)
        return found

    def usage(self, period: str = "") -> Json:
        """Return metered GPU-milliseconds: `rows` by account, site and flavor; `partners`, delivered and consumed."""
        return self._json("GET", "/usage", query={"period": period})

    def crossings(self, *, period: str = "", job: str = "") -> list[Json]:
        """Return bytes and counts over each border by class: `from`, `to`, `class`, `bytes`, `count`, both sides'."""
        return self._list("GET", "/crossings", query={"period": period, "job": job})

    def checkpoint(self) -> str:
        """Return the log's signed checkpoint (C2SP signed note)."""
        return self._wire.call("GET", "/log/checkpoint").text

    def entries(self, start: int = 0, count: int = 100) -> list[Json]:
        """Return leaves of the log in order."""
        found: list[Json] = self._json("GET", "/log/entries", query={"start": start, "count": count})["entries"]
        return found

    def inclusion(self, index: int, size: int | None = None) -> Json:
        """Return the inclusion proof of a leaf."""
        return self._json("GET", "/log/proof", query={"index": index, "size": size})

    def consistency(self, old: int, size: int | None = None) -> Json:
        """Return the proof that the log of `size` leaves extends that of `old`."""
        return self._json("GET", "/log/proof", query={"old": old, "size": size})

    def _json(self, method: str, path: str, **more: Any) -> Json:
        return self._wire.json(dict, method, path, **more)

    def _list(self, method: str, path: str, **more: Any) -> list[Json]:
        return self._wire.json(list, method, path, **more)


def _submission(signed: SignedSpec) -> Json:
    return {"spec": to_json(signed.spec), "signature": signed.signature}
