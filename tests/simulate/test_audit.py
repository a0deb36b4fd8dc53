"""The auditor finds each kind of breach in a forged list of events, and nothing in a sound one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from consortium.config import Scenario
from consortium.config.quota import QuotaEntry
from consortium.config.scenario import ChangeEntry, Sharing, SiteEntry, WindowEntry
from consortium.domain.partner import Cotenancy, SiteState
from consortium.scheduler import WindowKind
from consortium.simulate.audit import Auditor
from consortium.simulate.events import Event, Kind
from tests.simulate.builders import H, finish, job, scenario, start, submit

DE, FR = "de-1-n000", "fr-1-n000"
A, B, WHOLE = job("a", gpus=4), job("b", gpus=4, account="de"), job("whole", gpus=8)
BOUND = job("bound", gpus=4, allowed=("fr-1",))
GANG = job("gang", gpus=4, gang=("de-1", "fr-1"))
PICKY = job("picky", gpus=4, flavors=("h100-sxm",))
SMALL_NODES = {"fr-1": SiteEntry(gpus=8, node_gpus=4), "de-1": SiteEntry(gpus=8)}


def _audit(what: Scenario, events: Sequence[Event]) -> dict[str, int]:
    auditor = Auditor(what)
    for event in events:
        auditor.see(event)
    auditor.close()
    assert len(auditor.found) == sum(auditor.violations.values())
    return {rule: count for rule, count in auditor.violations.items() if count}


def test_a_sound_schedule_has_no_violation() -> None:
    assert not _audit(
        scenario(),
        [
            submit(A),
            submit(GANG),
            start(A, 0, "fr-1", {FR: 4}),
            start(GANG, 0, "de-1", {DE: 4}),
            start(GANG, 0, "fr-1", {FR: 4}),
            finish(A, H, "fr-1", {FR: 4}, Kind.PREEMPT),
            submit(WHOLE, H),
            finish(GANG, 2 * H, "de-1", {DE: 4}),
            finish(GANG, 2 * H, "fr-1", {FR: 4}),
            start(WHOLE, 2 * H, "fr-1", {FR: 8}),
            start(A, 2 * H, "de-1", {DE: 4}),
            finish(A, 3 * H, "de-1", {DE: 4}),
            finish(WHOLE, 3 * H, "fr-1", {FR: 8}),
        ],
    )


FORGED = {
    "two jobs on the same GPUs": (
        scenario(), [submit(WHOLE), submit(B), start(WHOLE, 0, "fr-1", {FR: 8}), start(B, 0, "fr-1", {FR: 4})],
        {"capacity": 1},
    ),
    "a node that another site owns": (
        scenario(), [submit(A), start(A, 0, "fr-1", {DE: 4})], {"capacity": 1},
    ),
    "GPUs taken again before the job that stops has stopped": (
        scenario(),
        [
            submit(WHOLE), submit(B), start(WHOLE, 0, "fr-1", {FR: 8}), start(B, H - 1, "fr-1", {FR: 4}),
            finish(WHOLE, H, "fr-1", {FR: 8}, Kind.PREEMPT),
        ],
        {"capacity": 1},
    ),
    "a start at a lost site": (
        scenario(changes={"loss": ChangeEntry(at_h=1, site="fr-1", state=SiteState.LOST)}),
        [submit(A), start(A, H, "fr-1", {FR: 4})], {"capacity": 1},
    ),
    "a start in a maintenance window": (
        scenario(windows={"w": WindowEntry(kind=WindowKind.MAINTENANCE, site="fr-1", from_h=1, until_h=2)}),
        [submit(A), start(A, 2 * H - 1, "fr-1", {FR: 4})], {"capacity": 1},
    ),
    "a job that still runs when a maintenance window begins": (
        scenario(windows={"w": WindowEntry(kind=WindowKind.MAINTENANCE, site="fr-1", from_h=1, until_h=2)}),
        [submit(A), start(A, 0, "fr-1", {FR: 4}), submit(B, 2 * H)], {"capacity": 1},
    ),
    "a start on what is reserved for another account": (
        scenario(
            windows={"w": WindowEntry(kind=WindowKind.RESERVATION, site="fr-1", account="de", from_h=1, until_h=2)}
        ),
        [submit(A), start(A, H, "fr-1", {FR: 4})], {"capacity": 1},
    ),
    "two partners on a node that one partner at a time may use": (
        scenario(sites={"fr-1": SiteEntry(gpus=8, cotenancy=Cotenancy.PARTNER), "de-1": SiteEntry(gpus=8)}),
        [submit(A), submit(B), start(A, 0, "fr-1", {FR: 4}), start(B, 0, "fr-1", {FR: 4})], {"capacity": 1},
    ),
    "a job bound to its home, abroad": (
        scenario(), [submit(BOUND), start(BOUND, 0, "de-1", {DE: 4})], {"territory": 1},
    ),
    "a flavor the job does not accept": (
        scenario(flavors={"gpu": "1.0", "h100-sxm": "1.0"}), [submit(PICKY), start(PICKY, 0, "de-1", {DE: 4})],
        {"territory": 1},
    ),
    "half a gang": (
        scenario(), [submit(GANG), start(GANG, 0, "fr-1", {FR: 4})], {"gang": 1},
    ),
    "a gang whose legs start one after the other": (
        scenario(), [submit(GANG), start(GANG, 0, "fr-1", {FR: 4}), start(GANG, 1, "de-1", {DE: 4})], {"gang": 2},
    ),
    "a job at two sites that needs one": (
        scenario(), [submit(A), start(A, 0, "fr-1", {FR: 4}), start(A, 0, "de-1", {DE: 4})], {"gang": 1},
    ),
    "fewer GPUs than the job asked for": (
        scenario(), [submit(A), start(A, 0, "fr-1", {FR: 3})], {"gang": 1},
    ),
    "a worker torn over two nodes": (
        scenario(sites=SMALL_NODES), [submit(WHOLE), start(WHOLE, 0, "fr-1", {FR: 4, "fr-1-n001": 4})], {"gang": 1},
    ),
    "a start before the submission": (
        scenario(), [start(A, 0, "fr-1", {FR: 4})], {"gang": 1},
    ),
    "a job that starts while it runs": (
        scenario(), [submit(A), start(A, 0, "fr-1", {FR: 4}), start(A, 5, "fr-1", {FR: 4})], {"gang": 1},
    ),
    "an end of what never started": (
        scenario(), [submit(A), finish(A, H, "fr-1", {FR: 4})], {"gang": 1},
    ),
    "an end on other nodes than it started on": (
        scenario(), [submit(A), start(A, 0, "fr-1", {FR: 4}), finish(A, H, "fr-1", {FR: 3})], {"gang": 1},
    ),
    "more than nominal and the borrowing limit": (
        scenario(quotas={"fr": {"gpu": QuotaEntry(borrowing_limit=2)}}),
        [submit(A), submit(WHOLE), start(WHOLE, 0, "fr-1", {FR: 8}), start(A, 0, "de-1", {DE: 4})], {"quota": 1},
    ),
    "what the owner does not lend": (
        scenario(quotas={"de": {"gpu": QuotaEntry(lending_limit=3)}}),
        [submit(A), submit(WHOLE), start(WHOLE, 0, "fr-1", {FR: 8}), start(A, 0, "de-1", {DE: 4})], {"quota": 1},
    ),
    "borrowing where nothing is shared": (
        scenario(sharing=Sharing.NONE),
        [submit(A), submit(WHOLE), start(WHOLE, 0, "fr-1", {FR: 8}), start(A, 0, "de-1", {DE: 4})], {"quota": 1},
    ),
    "a flavor the account does not declare": (
        scenario(quotas={"fr": {}}), [submit(A), start(A, 0, "fr-1", {FR: 4})], {"quota": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_schedule_is_found_out(name: str) -> None:
    what, events, expected = FORGED[name]
    assert _audit(what, events) == expected


def test_a_job_that_ends_as_the_window_begins_or_is_whom_it_is_for_breaks_nothing() -> None:
    shut = WindowEntry(kind=WindowKind.MAINTENANCE, site="fr-1", from_h=1, until_h=2)
    ours = WindowEntry(kind=WindowKind.RESERVATION, site="de-1", account="de", from_h=1, until_h=2)
    events = [submit(A), submit(B), start(A, 0, "fr-1", {FR: 4}), start(B, 0, "de-1", {DE: 4})]
    events += [finish(A, H, "fr-1", {FR: 4}), submit(WHOLE, 2 * H)]
    assert not _audit(scenario(windows={"shut": shut, "ours": ours}), events)


def test_a_lending_limit_still_lets_its_owner_use_all_of_it() -> None:
    own = job("own", gpus=8, account="de")
    limited = scenario(quotas={"de": {"gpu": QuotaEntry(lending_limit=3)}})
    events = [submit(own), submit(WHOLE), start(own, 0, "de-1", {DE: 8}), start(WHOLE, 0, "fr-1", {FR: 8})]
    assert not _audit(limited, events)


def test_what_was_lent_is_given_back_to_the_books() -> None:
    """Charged and released along the tree: after both, the cohort has as much to lend as before."""
    lender = scenario(quotas={"de": {"gpu": QuotaEntry(lending_limit=4)}, "fr": {"gpu": QuotaEntry()}})
    events = [submit(WHOLE), submit(A)]
    for at in range(3):
        events += [start(WHOLE, at * H, "fr-1", {FR: 8}), start(A, at * H, "de-1", {DE: 4})]
        events += [finish(A, at * H + 1, "de-1", {DE: 4}, Kind.PREEMPT)]
        events += [finish(WHOLE, at * H + 1, "fr-1", {FR: 8}, Kind.PREEMPT)]
    assert not _audit(lender, events)
