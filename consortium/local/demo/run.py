"""The five steps in order, on a federation that is up."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from consortium.config import FederationConfig
from consortium.local.demo import collect, steps
from consortium.local.demo.corpora import Corpora
from consortium.local.demo.session import Session
from consortium.local.paths import FederationDir


def run(
    directory: FederationDir,
    config: FederationConfig,
    corpora: Corpora,
    *,
    begun: float,
    start_s: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run the demo and return its document.

    `begun` is the monotonic time at which the command started, `start_s` what starting the federation took. Raises
    JobFailedError naming the job that failed and why.
    """
    session = Session(directory=directory, say=say, stages={"start": round(start_s, 1)})
    languages = {partner.id: partner.languages[0] for partner in config.partners}
    try:
        say(f"input: {corpora.source}")
        with session.stage("register"):
            raw = steps.register(session, config, corpora)
        denied = steps.refuse_by_policy(session)
        say(f"  denied: {denied['message']} ({denied['clause']}, {denied['file']}:{denied['line']})")
        with session.stage("clean"):
            steps.clean(session, languages)
        with session.stage("tokenize"):
            steps.tokenize(session, languages)
        with session.stage("pretrain"):
            steps.pretrain(session, languages)
        with session.stage("evaluate"):
            evaluated, quota = steps.evaluate_and_borrow(session, languages)
        with session.stage("report"):
            document = collect.gather(session, denied, quota, evaluated)
            paths = collect.write_reports(session, datetime.now(UTC).strftime("%Y-%m"))
            audit = collect.verify_reports(session, paths)
        document |= {
            "input": corpora.source,
            "registered": [dataset.id for dataset in raw],
            "reports": {partner: str(path) for partner, path in paths.items()},
            "audit": audit,
            "verified": audit["verified"],
            "stages": session.stages,
            "seconds": round(time.monotonic() - begun, 1),
        }
        return document
    finally:
        session.close()
