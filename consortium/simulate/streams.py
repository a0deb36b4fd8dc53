"""Jobs that a scenario brings itself: written out, or made up by a seeded generator."""

from __future__ import annotations

import math
from random import Random

from consortium.config import Scenario
from consortium.config.scenario import JobEntry, Sharing, StreamEntry
from consortium.domain import ids
from consortium.simulate.workload import Job, by_submission, worker_gpus


def make_jobs(scenario: Scenario) -> tuple[Job, ...]:
    """Return the jobs of a scenario but those of its trace, in order of submission.

    A stream's jobs depend on its name, its keys and the seed alone.
    """
    node_gpus = min(site.node_gpus for site in scenario.sites.values())
    jobs = [_written(scenario, name, entry, node_gpus) for name, entry in sorted(scenario.jobs.items())]
    for name, stream in sorted(scenario.streams.items()):
        random = Random(f"{scenario.seed}:{name}")  # noqa: S311  a workload, not a secret
        for number, submit_ms in enumerate(_arrivals(stream, random), start=1):
            run_ms = max(1, round(_between(random, stream.run_h) * 3600)) * 1000
            gpus = int(_pick(random, stream.gpus))
            jobs.append(
                Job(
                    id=f"{name}-{number:05d}",
                    account=stream.account,
                    partner=ids.partner_of(stream.account),
                    submit_ms=submit_ms,
                    run_ms=run_ms,
                    walltime_s=math.ceil(run_ms / 1000 * _between(random, stream.walltime_factor)),
                    gpus=gpus,
                    gpus_per_worker=worker_gpus(gpus, node_gpus),
                    allowed=_allowed(scenario, stream.account),
                    gang=stream.sites,
                    flavors=stream.flavors,
                    priority=stream.priority,
                    checkpoint_every_s=stream.checkpoint_every_s,
                    preemptible=stream.preemptible,
                )
            )
    return by_submission(jobs)


def _written(scenario: Scenario, name: str, entry: JobEntry, node_gpus: int) -> Job:
    return Job(
        id=name,
        account=entry.account,
        partner=ids.partner_of(entry.account),
        submit_ms=round(entry.at_s * 1000),
        run_ms=round(entry.run_s * 1000),
        walltime_s=entry.walltime_s,
        gpus=entry.gpus,
        gpus_per_worker=worker_gpus(entry.gpus, node_gpus),
        allowed=_allowed(scenario, entry.account),
        gang=entry.sites,
        flavors=entry.flavors,
        priority=entry.priority,
        checkpoint_every_s=entry.checkpoint_every_s,
        preemptible=entry.preemptible,
    )


def _allowed(scenario: Scenario, account: str) -> tuple[str, ...]:
    """The sites an account's jobs may use: its partner's own where nothing is shared."""
    if scenario.sharing is Sharing.POOL:
        return ()
    return tuple(sorted(site for site in scenario.sites if ids.partner_of(site) == ids.partner_of(account)))


def _arrivals(stream: StreamEntry, random: Random) -> list[int]:
    """Whole seconds, in milliseconds: a Poisson process from `from_h` until `until_h`, and bursts."""
    found: list[int] = []
    hour = stream.from_h
    while stream.per_hour:
        hour += random.expovariate(stream.per_hour)
        if hour >= stream.until_h:
            break
        found.append(round(hour * 3600) * 1000)
    hour = stream.from_h
    while stream.burst_jobs and hour < stream.until_h:
        found += [round(hour * 3600) * 1000] * stream.burst_jobs
        hour += stream.burst_every_h
    return sorted(found)


def _between(random: Random, pair: tuple[float, float]) -> float:
    """Log-uniform."""
    low, high = pair
    return low * math.pow(high / low, random.random())


def _pick(random: Random, weights: dict[str, int]) -> str:
    at = random.randrange(sum(weights.values()))
    for name, weight in sorted(weights.items(), key=lambda item: int(item[0])):
        at -= weight
        if at < 0:
            return name
    raise AssertionError("weights sum to more than what is drawn")
