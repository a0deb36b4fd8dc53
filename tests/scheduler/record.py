"""Write the files in `recorded/` anew: `python -m tests.scheduler.record`, after a rule has changed on purpose.

Files of worlds made by hand come from here; of every other file the snapshot stays and its plan is made anew.
"""

from __future__ import annotations

from pathlib import Path

from consortium.domain.decision import Reason, ReasonCode
from consortium.domain.job import Priority
from consortium.scheduler import History, Snapshot, Window, WindowKind, schedule
from consortium.scheduler.recorded import record, replay
from tests.builders import NOW_MS, account, site
from tests.scheduler.worlds import A100, H100, HOUR_MS, held, job, world

FOLDER = Path(__file__).parent / "recorded"


def gpus_taken_back() -> Snapshot:
    """A borrower has stopped and waits again; the job it stopped for is served before one of a higher class."""
    accounts = (account("fr", {H100: 6}), account("fr/health", {H100: (2, 6, None)}), account("de", {H100: 0}))
    waiting = (
        job(1, account="de", gpus=8, done_ms=HOUR_MS // 2),
        job(2, gpus=6, nominated=True),
        job(3, account="fr/health", gpus=4, priority=Priority.HIGH),
    )
    return world(*waiting, sites=(site("fr-1", H100, (8,)),), accounts=accounts, min_run_s=0)


def a_busy_day() -> Snapshot:
    """One of everything: verdicts, a gang, a window, a cordon, history, legs that stop, an eviction, a backfill."""
    clause = Reason(
        code=ReasonCode.POLICY,
        message="de/purpose/1 (policy/de.yaml:12): de-1 is for research",
        numbers={"clause": "de/purpose/1", "line": 12},
        site="de-1",
        fix="give the job the purpose research",
    )
    accounts = (
        account("fr", {H100: 12, A100: 0}),
        account("fr/law", {H100: (4, 4, None), A100: 0}),
        account("de", {H100: 0, A100: (16, None, 4)}),
        account("uy", {H100: (8, None, 2), A100: 0}),
    )
    legs = (
        held(1, "fr-1", {"n0": 8}, account="de", started_ms=NOW_MS - 2 * HOUR_MS, walltime_s=6 * 3600,
             checkpoint_ms=NOW_MS - HOUR_MS, anywhere=True),
        held(2, "fr-1", {"n1": 4}, account="fr/law", started_ms=NOW_MS - HOUR_MS, expected_s=5400, walltime_s=7200),
        held(3, "de-1", {"n0": 8}, A100, started_ms=NOW_MS - HOUR_MS, walltime_s=3 * 3600),
        held(4, "uy-1", {"n0": 4}, account="de", preemptible=False, stopping_for=job(9).id, walltime_s=120),
    )  # fmt: skip
    waiting = (
        job(1, gpus=12, sites=("fr-1",), walltime_s=4 * 3600, denied={"de-1": clause}),
        job(2, account="fr/law", gpus=4, walltime_s=1200, expected_s=900),
        job(3, account="de", gpus=8, sites=("de-1", "uy-1"), min_sites=2, checkpoint_every_s=600),
        job(4, account="de", gpus=2, flavors=(A100,), walltime_s=1800, avoid=(("de-1", "n0"),)),
        job(5, account="uy", gpus=4, not_before_ms=NOW_MS + 60_000, not_before_reason="a backoff after a fault"),
        job(6, account="uy", waits_for=Reason(code=ReasonCode.CAPACITY, message="waits for another job")),
        job(7, account="de", gpus=32, priority=Priority.LOW),
        job(9, account="uy", gpus=8, sites=("uy-1",), nominated=True, priority=Priority.LOW),
    )
    sites = (site("fr-1", H100, (8, 8, 8)), site("de-1", A100, (8, 8)), site("uy-1", H100, (8,)))
    windows = (
        Window(id="win-1", kind=WindowKind.MAINTENANCE, site="de-1", nodes=("n1",),
               start_ms=NOW_MS + HOUR_MS, end_ms=NOW_MS + 2 * HOUR_MS),
        Window(id="win-2", kind=WindowKind.RESERVATION, site="fr-1", nodes=(), account="fr",
               start_ms=NOW_MS + 3 * HOUR_MS, end_ms=NOW_MS + 9 * HOUR_MS),
    )  # fmt: skip
    history = (History(account="de", borrowed=2**60), History(account="fr", lent=40 * HOUR_MS))
    return world(
        *waiting, sites=sites, accounts=accounts, held=legs, windows=windows, history=history,
        cordoned={"fr-1": ("n2",)}, reservations=4,
    )  # fmt: skip


WORLDS = {"gpus-taken-back": gpus_taken_back, "a-busy-day": a_busy_day}


def main() -> None:
    found = {path: replay(path.read_bytes()).snapshot for path in FOLDER.glob("*.json") if path.stem not in WORLDS}
    found |= {FOLDER / f"{name}.json": make() for name, make in WORLDS.items()}
    for path, snapshot in sorted(found.items()):
        path.write_bytes(record(snapshot, schedule(snapshot)))


if __name__ == "__main__":
    main()
