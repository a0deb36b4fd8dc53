"""`Client`: the SDK over the server's `/v1`. The command line and the demo use nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

import httpx

from consortium import PROTOCOL_VERSION
from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Dataset
from consortium.domain.job import Job, SignedSpec
from consortium.domain.training import Round
from consortium.errors import ConsortiumError, UnreachableError, by_slug

T = TypeVar("T")
PROTOCOL_HEADER = "Consortium-Protocol"
PROBLEM_PREFIX = "urn:consortium:"


class Client:
    """A user's connection to the server.

    Every method raises UnreachableError where the server does not answer, AuthError for a missing, expired or
    insufficient token, and otherwise the error that the server's problem document (RFC 9457) names.
    """

    def __init__(self, url: str, token: str, *, timeout_s: float = 30.0) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}", PROTOCOL_HEADER: str(PROTOCOL_VERSION)},
            timeout=timeout_s,
            trust_env=False,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    # -- who and what ---------------------------------------------------------------------------------------------

    def health(self) -> dict[str, Any]:
        """Return the server's version, incarnation and log size; needs no token."""
        return self._get("/v1/health")

    def whoami(self) -> dict[str, Any]:
        """Return the token's subject, roles, partner and expiry."""
        return self._get("/v1/whoami")

    def federation(self) -> dict[str, Any]:
        """Return partners, sites, tracking URL and the public keys' fingerprints."""
        return self._get("/v1/federation")

    # -- jobs -----------------------------------------------------------------------------------------------------

    def submit(self, signed: SignedSpec, *, idempotency_key: str = "") -> Job:
        """Submit a signed spec and return the job as stored.

        A job that a policy or quota rules out comes back with state `denied` and its reason, and stays listed.
        """
        body = {"spec": to_json(signed.spec), "signature": signed.signature, "idempotency_key": idempotency_key}
        return self._job(self._call("POST", "/v1/jobs", json=body))

    def dry_run(self, signed: SignedSpec) -> dict[str, Any]:
        """Return what would become of the job, site by site, without storing it."""
        body = {"spec": to_json(signed.spec), "signature": signed.signature, "dry_run": True}
        return self._dict(self._call("POST", "/v1/jobs", json=body))

    def jobs(self, *, state: str = "", account: str = "") -> list[Job]:
        """Return jobs, oldest first, of one state or account where named."""
        query = {key: value for key, value in (("state", state), ("account", account)) if value}
        return [from_json(Job, row, where="/v1/jobs") for row in self._get("/v1/jobs", query)["jobs"]]

    def job(self, job: str) -> Job:
        """Return a job with its attempts and legs. Raises NotFoundError."""
        return self._job(self._call("GET", f"/v1/jobs/{quote(job, safe='')}"))

    def explain(self, job: str) -> dict[str, Any]:
        """Return the funnel of a job: what was tried at every site, its position and estimated start."""
        return self._get(f"/v1/jobs/{quote(job, safe='')}/explain")

    def cancel(self, job: str) -> Job:
        """Ask for a job to stop and return it; legs end within a poll of their sites."""
        return self._job(self._call("POST", f"/v1/jobs/{quote(job, safe='')}/cancel"))

    def logs(self, job: str, *, site: str = "", after: int = 0) -> dict[str, Any]:
        """Return `{"chunks": [{id, leg, site, text}], "withheld": [sites], "after": n}`, from chunk `after` on."""
        query: dict[str, Any] = {"after": after} | ({"site": site} if site else {})
        return self._get(f"/v1/jobs/{quote(job, safe='')}/logs", query)

    def rounds(self, job: str) -> list[Round]:
        """Return the rounds of a federated training job, first to last."""
        path = f"/v1/jobs/{quote(job, safe='')}/rounds"
        return [from_json(Round, row, where=path) for row in self._get(path)["rounds"]]

    # -- sites and quotas -----------------------------------------------------------------------------------------

    def sites(self) -> list[dict[str, Any]]:
        """Return every site with its state, GPUs, GPUs held, health and last contact."""
        return list(self._get("/v1/sites")["sites"])

    def drain(self, site: str) -> dict[str, Any]:
        """Stop placing legs at a site; running ones go on."""
        return self._dict(self._call("POST", f"/v1/sites/{quote(site, safe='')}/drain"))

    def resume(self, site: str) -> dict[str, Any]:
        """Take a drained site back in."""
        return self._dict(self._call("POST", f"/v1/sites/{quote(site, safe='')}/resume"))

    def quota(self) -> dict[str, Any]:
        """Return accounts with their quotas, and budgets and pledges."""
        return self._get("/v1/quota")

    def shares(self) -> list[dict[str, Any]]:
        """Return what every account holds, borrows and lends of each flavor now."""
        return list(self._get("/v1/shares")["shares"])

    # -- data -----------------------------------------------------------------------------------------------------

    def register_dataset(self, dataset: Dataset, *, person: str, signature: str) -> Dataset:
        """Register a dataset that lies in its home's private store; `signature` is over its canonical JSON."""
        body = {"dataset": to_json(dataset), "person": person, "signature": signature}
        return from_json(Dataset, self._dict(self._call("POST", "/v1/datasets", json=body)), where="/v1/datasets")

    def datasets(self, *, name: str = "") -> list[Dataset]:
        """Return all datasets, or all versions of one name."""
        rows = self._get("/v1/datasets", {"name": name} if name else {})["datasets"]
        return [from_json(Dataset, row, where="/v1/datasets") for row in rows]

    def dataset(self, name_or_id: str) -> Dataset:
        """Return a dataset by id, or the newest version of a name. Raises NotFoundError."""
        path = f"/v1/datasets/{quote(name_or_id, safe='')}"
        return from_json(Dataset, self._get(path), where=path)

    def trace(self, name_or_id: str) -> dict[str, Any]:
        """Return what a dataset, or a job's model, was made from, back to collections and licences."""
        return self._get(f"/v1/datasets/{quote(name_or_id, safe='')}/trace")

    # -- the books ------------------------------------------------------------------------------------------------

    def crossings(self, *, job: str = "") -> list[dict[str, Any]]:
        """Return totals over each border: `{from, to, class, bytes, count}`."""
        return list(self._get("/v1/crossings", {"job": job} if job else {})["crossings"])

    def usage(self, *, period: str = "") -> dict[str, Any]:
        """Return GPU-milliseconds delivered and consumed per partner."""
        return self._get("/v1/usage", {"period": period} if period else {})

    def report(self, partner: str, period: str) -> dict[str, Any]:
        """Return a partner's contribution report for `YYYY-MM`, as `consortium audit verify` checks it."""
        return self._get(f"/v1/reports/{quote(partner, safe='')}", {"period": period})

    def checkpoint(self) -> str:
        """Return the ledger's signed checkpoint (a C2SP signed note)."""
        return str(self._get("/v1/log/checkpoint")["checkpoint"])

    def log_entries(self, start: int = 0, count: int = 100) -> dict[str, Any]:
        """Return `{"size": n, "entries": [...]}` of the ledger from `start` on."""
        return self._get("/v1/log/entries", {"start": start, "count": count})

    def log_proof(self, index: int, size: int) -> list[str]:
        """Return the inclusion proof (hex hashes) of entry `index` in the tree of `size`."""
        return list(self._get("/v1/log/proof", {"index": index, "size": size})["proof"])

    # -- the wire -------------------------------------------------------------------------------------------------

    def _get(self, path: str, query: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self._dict(self._call("GET", path, params=query))

    def _job(self, response: httpx.Response) -> Job:
        return from_json(Job, self._dict(response), where=str(response.url))

    def _dict(self, response: httpx.Response) -> dict[str, Any]:
        data = response.json()
        if not isinstance(data, dict):
            raise ConsortiumError("the server's answer is not a JSON object", where=str(response.url))
        return data

    def _call(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **kwargs)
        except httpx.TransportError as fault:
            raise UnreachableError(
                f"the server does not answer: {str(fault) or type(fault).__name__}",
                where=self.url,
                fix="start it with `consortium up`, or set $CONSORTIUM_SERVER to where it runs",
            ) from fault
        if response.is_success:
            return response
        raise_problem(response)


def raise_problem(response: httpx.Response) -> NoReturn:
    """Raise the error that a response's problem document names; the status alone where it carries none."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or not str(problem.get("type", "")).startswith(PROBLEM_PREFIX):
        raise UnreachableError(f"unexpected answer: HTTP {response.status_code}", where=str(response.url))
    leaf = by_slug(str(problem["type"]).removeprefix(PROBLEM_PREFIX))
    raise leaf(str(problem.get("detail", "")), where=problem.get("where"), fix=problem.get("fix"))
