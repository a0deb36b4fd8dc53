"""What the demo's steps share: the federation, a client per person, and how stages and waits are shown."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from consortium.client.api import Client
from consortium.client.submission import make_spec
from consortium.domain.job import Job, JobState
from consortium.errors import JobFailedError
from consortium.keys.signing import SigningKey
from consortium.local.paths import FederationDir

_POLL_S = 0.5


@dataclass(slots=True, kw_only=True)
class Session:
    """One run of the demo. `say` prints a line for people (standard error)."""

    directory: FederationDir
    say: Callable[[str], None]
    jobs: dict[str, str] = field(default_factory=dict)
    """Job ids by what the demo calls them (`clean fr`, `pretrain`), in order of submission."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds each stage took."""
    _clients: dict[str, Client] = field(default_factory=dict)

    def client(self, person: str) -> Client:
        """Return a connection as `person`."""
        if person not in self._clients:
            known = self.directory.client()
            token = Path(known["token_paths"][person]).read_text().strip()
            self._clients[person] = Client(known["server_url"], token)
        return self._clients[person]

    def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            client.close()

    def key(self, person: str) -> SigningKey:
        """Return a person's signing key."""
        return SigningKey.load(self.directory.client()["key_paths"][person])

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and say when it is done."""
        begun = time.monotonic()
        yield
        self.stages[name] = round(time.monotonic() - begun, 1)
        self.say(f"{name}: done in {self.stages[name]:.1f} s")

    def submit(self, called: str, kind: str, overrides: list[str], *, person: str, account: str = "") -> Job:
        """Submit a job as `person`, remember it as `called` and return it."""
        client = self.client(person)
        signed = make_spec(client, kind, overrides, person=person, key=self.key(person), account=account)
        job = client.submit(signed)
        self.jobs[called] = job.id
        return job

    def wait(self, called: list[str], *, person: str, timeout_s: float, states: tuple[JobState, ...] = ()) -> list[Job]:
        """Wait until the named jobs are final, or in one of `states`, and return them.

        Raises JobFailedError naming the job, its reason and where to look, for one that ended other than well or is not
        there in time.
        """
        client = self.client(person)
        deadline = time.monotonic() + timeout_s
        while True:
            jobs = [client.job(self.jobs[name]) for name in called]
            for name, job in zip(called, jobs, strict=True):
                if job.state.final and job.state is not JobState.SUCCEEDED:
                    raise self._failed(name, job, f"{job.state.value}")
            if all(job.state.final or job.state in states for job in jobs):
                return jobs
            if time.monotonic() > deadline:
                late = next((n, j) for n, j in zip(called, jobs, strict=True) if not j.state.final)
                raise self._failed(*late, f"still {late[1].state.value} after {timeout_s:g} s")
            time.sleep(_POLL_S)

    def _failed(self, called: str, job: Job, how: str) -> JobFailedError:
        reason = job.reason.message if job.reason else ""
        legs = job.attempt.legs if job.attempt else ()
        told = "; ".join(f"{leg.site}: {leg.reason}" for leg in legs if leg.reason)
        return JobFailedError(
            f"{called} ({job.id}) {how}: {' — '.join(part for part in (reason, told) if part) or 'no reason given'}",
            where=str(self.directory.root / "logs"),
            fix="run `consortium demo --keep` and look with `consortium explain JOB` and `consortium logs JOB`",
        )
