"""The demo's steps, each what a user would do, through the same API."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from consortium.config import FederationConfig
from consortium.data.sample import generate
from consortium.domain.codec import to_json
from consortium.domain.data import Dataset
from consortium.domain.job import Job, JobState
from consortium.errors import JobFailedError
from consortium.local.demo.corpora import Corpora
from consortium.local.demo.session import Session
from consortium.local.steward import register_at_home

ENGINEERS = {"fr": "fr/amelie", "de": "de/anna", "uy": "uy/alma"}
AUDITORS = {"fr": "fr/claire", "de": "de/clara", "uy": "uy/carmen"}
_MINUTES = 60.0
_BORROWER = "de/research"


def register(session: Session, config: FederationConfig, corpora: Corpora) -> list[Dataset]:
    """Put every state's collection into its own private store and register it; nothing of it crosses a border."""
    paths = dict(corpora.found)
    for partner in config.partners if corpora.generated else ():
        language = partner.languages[0]
        paths[partner.id] = generate(language).write(session.directory.root / "sample" / f"{language}.jsonl")

    def one(partner: str, site: str, language: str) -> Dataset:
        person = ENGINEERS[partner]
        return register_at_home(
            session.client(person),
            session.key(person),
            name=f"laws-{language}",
            paths=[paths[partner]],
            site=site,
            languages=(language,),
            directory=session.directory,
        )

    homes = {site.partner: site.id for site in config.sites}
    rows = [(p.id, homes[p.id], p.languages[0]) for p in config.partners]
    with ThreadPoolExecutor(max_workers=2) as pool:
        return list(pool.map(lambda row: one(*row), rows))


def refuse_by_policy(session: Session) -> dict[str, Any]:
    """An engineer of fr asks to read uy's raw text at fr-1; uy's own policy says no, and where."""
    overrides = ["inputs=[laws-es]", "sites=[fr-1]", "name=read-uy-at-fr"]
    job = session.submit("read uy's text at fr-1", "clean", overrides, person=ENGINEERS["fr"])
    if job.state is not JobState.DENIED or not job.denials:
        raise JobFailedError(
            f"{job.id} should have been denied by uy's policy but is {job.state.value}",
            where="configs/policy/uy.yaml",
            fix="restore the residency rule of Uruguay's policy",
        )
    denial: dict[str, Any] = to_json(job.denials[0])
    return {"job": job.id} | denial


def clean(session: Session, languages: dict[str, str]) -> list[Dataset]:
    """Clean every state's text at home, side by side; return the clean datasets."""
    names = []
    for partner, language in languages.items():
        overrides = [f"inputs=[laws-{language}]", f"name=clean-{language}", "gpus=2", "gpus_per_worker=2"]
        session.submit(f"clean {partner}", "clean", overrides, person=ENGINEERS[partner])
        names.append(f"clean {partner}")
    session.wait(names, person=ENGINEERS["fr"], timeout_s=5 * _MINUTES)
    return [session.client(ENGINEERS["fr"]).dataset(f"laws-{language}-clean") for language in languages.values()]


def tokenize(session: Session, languages: dict[str, str]) -> Job:
    """Train one tokenizer over all states from counts and write token shards at home."""
    inputs = ",".join(f"laws-{language}-clean" for language in languages.values())
    overrides = [f"inputs=[{inputs}]", "name=tokenize-laws", "vocab_size=1024"]
    session.submit("tokenize", "tokenize", overrides, person=ENGINEERS["uy"])
    return session.wait(["tokenize"], person=ENGINEERS["uy"], timeout_s=5 * _MINUTES)[0]


def pretrain(session: Session, languages: dict[str, str]) -> Job:
    """Train one model over three sites, federated."""
    inputs = ",".join(f"laws-{language}-tokens" for language in languages.values())
    overrides = [
        f"inputs=[{inputs}]",
        "name=pretrain-laws",
        "gpus=2",
        "gpus_per_worker=2",
        f"min_sites={len(languages)}",
    ]
    session.submit("pretrain", "pretrain", overrides, person=ENGINEERS["de"])
    return session.wait(["pretrain"], person=ENGINEERS["de"], timeout_s=8 * _MINUTES)[0]


def evaluate_and_borrow(session: Session, languages: dict[str, str]) -> tuple[Job, dict[str, Any]]:
    """Measure held-out loss everywhere; meanwhile the same project asks for more than it may borrow and has to wait.

    `de/research` owns no h100-sxm and may borrow 4 of them. The first job takes those 4 at fr-1, so the second, for 2
    more, waits although GPUs are free there, says why, and borrows as soon as the first gives them back.
    """
    engineer = ENGINEERS["de"]
    model = f"model={session.jobs['pretrain']}"
    inputs = ",".join(f"laws-{language}-tokens-heldout" for language in languages.values())
    overrides = [f"inputs=[{inputs}]", model, "name=evaluate-laws", "gpus=4", "gpus_per_worker=4"]
    session.submit("evaluate", "evaluate", overrides, person=engineer, account=_BORROWER)
    begun = (JobState.STARTING, JobState.RUNNING)
    session.wait(["evaluate"], person=engineer, timeout_s=_MINUTES, states=begun)
    inputs = f"laws-{languages['fr']}-tokens-heldout"
    overrides = [f"inputs=[{inputs}]", model, "name=evaluate-fr-again", "gpus=2", "gpus_per_worker=2"]
    waiting = session.submit("evaluate over quota", "evaluate", overrides, person=engineer, account=_BORROWER)
    story = _waits(session, waiting.id, engineer)
    done = session.wait(["evaluate"], person=engineer, timeout_s=5 * _MINUTES)[0]
    session.wait(["evaluate over quota"], person=engineer, timeout_s=_MINUTES, states=begun)
    story["borrowed_gpus"] = _borrowed(session, engineer)
    session.say(f"  {waiting.id} starts, on {story['borrowed_gpus']} borrowed GPUs")
    last = session.wait(["evaluate over quota"], person=engineer, timeout_s=5 * _MINUTES)[0]
    return done, story | {"state": last.state.value}


def _borrowed(session: Session, person: str) -> int:
    """Return how many GPUs the project holds above its nominal quotas now."""
    return sum(int(row["borrowed"]) for row in session.client(person).shares() if row["account"] == _BORROWER)


def _waits(session: Session, job: str, person: str) -> dict[str, Any]:
    """Wait until the scheduler has said why the job waits. Raises JobFailedError where it does not wait."""
    client = session.client(person)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        now = client.job(job)
        if now.state is JobState.PENDING and now.reason is not None:
            session.say(f"  {job} waits: {now.reason.message}")
            return {"job": job, "code": now.reason.code.value, "reason": now.reason.message}
        if now.state is not JobState.PENDING:
            break
        time.sleep(0.2)
    raise JobFailedError(
        f"{job} should wait for quota but is {now.state.value}",
        where="configs/quota",
        fix=f"the borrowing limit of {_BORROWER} for h100-sxm is to be 4",
    )
