"""What the demo shows at its end, gathered through the API: the document of `consortium demo --json`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from consortium.domain.data import Dataset
from consortium.domain.job import Job
from consortium.domain.training import Round
from consortium.domain.units import MS_PER_HOUR
from consortium.errors import VerificationError
from consortium.local.demo.session import Session
from consortium.local.demo.steps import AUDITORS
from consortium.reports.text import render_json


def write_reports(session: Session, period: str) -> dict[str, Path]:
    """Fetch every partner's contribution report as its auditor and write it below the federation's `reports/`."""
    folder = session.directory.reports
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[str, Path] = {}
    for partner, auditor in AUDITORS.items():
        report = session.client(auditor).report(partner, period)
        paths[partner] = folder / f"{partner}-{period}.json"
        paths[partner].write_text(render_json(report), encoding="utf-8")
    return paths


def verify_reports(session: Session, paths: dict[str, Path]) -> dict[str, Any]:
    """Run `consortium audit verify` on each report, then on a copy of one in which a single digit was changed."""
    trust = session.directory.trust_file
    accepted = {partner: _audit(path, trust) for partner, path in paths.items()}
    partner, path = next(iter(paths.items()))
    forged = path.with_name(f"{path.stem}-forged.json")
    forged.write_text(_change_a_digit(path.read_text(encoding="utf-8")), encoding="utf-8")
    code, told = _audit(forged, trust)
    return {
        "accepted": {name: result[0] == 0 for name, result in accepted.items()},
        "forged": {"path": str(forged), "exit_code": code, "message": told, "partner": partner},
        "verified": all(result[0] == 0 for result in accepted.values()) and code == VerificationError.exit_code,
    }


def gather(session: Session, denied: dict[str, Any], quota: dict[str, Any], evaluated: Job) -> dict[str, Any]:
    """Return the document without reports: datasets, jobs, denials, losses, rounds, crossings and GPU-hours."""
    client = session.client(AUDITORS["fr"])
    jobs = [client.job(job) for job in session.jobs.values()]
    tracking = client.federation()["mlflow_url"]
    return {
        "datasets": [_dataset(dataset) for dataset in client.datasets()],
        "jobs": [_job(job) for job in jobs],
        "denied": [denied],
        "quota": quota,
        "loss": losses(evaluated),
        "rounds": [_round(item) for item in client.rounds(session.jobs["pretrain"])],
        "crossings": [
            {key: row[key] for key in ("from", "to", "class", "bytes", "count")} for row in client.crossings()
        ],
        "gpu_hours": _gpu_hours(client.usage()["partners"]),
        "tracking": tracking,
        "runs": {job.spec.name: f"{tracking}/#/runs/{job.tracking_run}" for job in jobs if job.tracking_run},
    }


def losses(evaluated: Job) -> dict[str, dict[str, float]]:
    """Return held-out loss in nats per token before and after training, per language, from the sites' results."""
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    for result in evaluated.result.values():
        for language, loss in result.get("metrics", {}).get("loss", {}).items():
            before[language] = round(float(loss["before"]), 4)
            after[language] = round(float(loss["after"]), 4)
    return {"before": dict(sorted(before.items())), "after": dict(sorted(after.items()))}


def _dataset(dataset: Dataset) -> dict[str, Any]:
    return {
        "id": dataset.id,
        "name": dataset.name,
        "site": dataset.site,
        "class": dataset.artifact_class.value,
        "languages": list(dataset.languages),
        "licence": dataset.licence,
        "documents": dataset.documents,
        "tokens": dataset.tokens,
        "bytes": dataset.size_bytes,
    }


def _job(job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "name": job.spec.name,
        "kind": job.spec.kind.value,
        "account": job.spec.account,
        "state": job.state.value,
        "sites": sorted(leg.site for leg in job.attempt.legs) if job.attempt else list(job.spec.sites),
        "reason": job.reason.message if job.reason else "",
    }


def _round(item: Round) -> dict[str, Any]:
    digests = sorted(set((item.outer_digests or {}).values()))
    sites = [part.site for part in item.certificate.contributions] if item.certificate else []
    return {
        "round": item.number,
        "sites": sites,
        "digest": digests[0] if len(digests) == 1 else "",
        "phase": item.phase.value,
        "tokens": sum(commit.tokens for commit in item.commits),
    }


def _gpu_hours(partners: dict[str, dict[str, int | str]]) -> dict[str, dict[str, float]]:
    """GPU-hours by partner: delivered by its sites, consumed by its accounts."""
    return {
        partner: {side: round(int(row[f"{side}_gpu_ms"]) / MS_PER_HOUR, 6) for side in ("delivered", "consumed")}
        for partner, row in sorted(partners.items())
    }


def _audit(path: Path, trust: Path) -> tuple[int, str]:
    """Run the command an auditor types; return its exit code and what it said."""
    run = subprocess.run(
        [sys.executable, "-m", "consortium.cli", "audit", "verify", str(path), "--trust", str(trust)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return run.returncode, (run.stderr or run.stdout).strip()


def _change_a_digit(text: str) -> str:
    """Raise one digit of a metered end of use by one: a partner that claims to have delivered more."""
    match = re.search(r'"end_ms": ?(\d)(\d*)', text)
    if match is None:
        raise VerificationError("the report carries no usage to forge", fix="run the demo again")
    last = match.end() - 1
    forged = text[:last] + str((int(text[last]) + 1) % 10) + text[last + 1 :]
    json.loads(forged)
    return forged
