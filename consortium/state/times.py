"""Times that lie ahead of the clock: it was set back between two runs of the server.

What is to come of them would wait for as much longer: leases that must run out, backoffs, the fair-share history.
"""

from __future__ import annotations

from sqlalchemy import Connection, func, select

from consortium.domain.job import JobState
from consortium.state import shares
from consortium.state import tables as t
from consortium.state.jobs import LIVE

_LEGS = t.legs.c.state.in_([state.value for state in LIVE]) | (t.legs.c.retry_at_ms > 0)
_JOBS = t.jobs.c.state.in_([state.value for state in JobState if not state.final])
_GO_ON = ((t.legs, t.legs.c.retry_at_ms, _LEGS), (t.jobs, t.jobs.c.not_before_ms, _JOBS))


def bring_back(connection: Connection, now_ms: int) -> int:
    """Let what was noted as later than `now_ms` count as now where it goes on; return how far ahead the latest was.

    Waits that were set then end as much earlier. What is over, and records, keep their times.
    """
    history, as_of_ms = shares.load_history(connection)
    latest_ms = [as_of_ms]
    for table, _, goes_on in _GO_ON:
        latest_ms.append(connection.execute(select(func.max(table.c.updated_ms)).where(goes_on)).scalar() or 0)
    ahead_ms = max(latest_ms) - now_ms
    if ahead_ms <= 0:
        return 0
    if as_of_ms > now_ms:
        shares.save_history(connection, history, now_ms)
    for table, wait, goes_on in _GO_ON:
        late = goes_on & (table.c.updated_ms > now_ms)
        connection.execute(table.update().where(late & (wait > now_ms)).values({wait.name: wait - ahead_ms}))
        connection.execute(table.update().where(late).values(updated_ms=now_ms))
    for name in ("offered_ms", "held_ms", "start_ms", "running_ms", "kept_ms"):
        late = (t.epochs.c.final_ms == 0) & (t.epochs.c[name] > now_ms)
        connection.execute(t.epochs.update().where(late).values({name: now_ms}))
    return ahead_ms
