"""A training that was cut off and is resumed by another job ends, to the last bit, where it would have ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from consortium.domain.pretraining import PretrainConfig, unlike
from consortium.errors import NotFoundError
from consortium.storage.objects import ObjectStore
from consortium.train.again import re_execute
from consortium.train.inner import InnerWorker
from consortium.train.keep import Keep
from consortium.train.replay import kept_params, replay
from consortium.train.start import resumed
from consortium.train.tokens import open_sequences
from tests.train.conftest import PARAMS, VOCAB
from tests.train.hub import JOB, Hub
from tests.train.test_leg import CrashError, Site, SpoilingWorker, digests, federation, together

EARLIER = JOB[:-1] + "c"
NAMES = ("de-1", "fr-1")


class CutOff(Site):
    """A leg that dies in a round, its third, and is not started again."""

    dies_in = 3

    def live(self) -> None:
        with pytest.raises(CrashError):
            self._run(("commit", self.dies_in, "before"))


def params(rounds: int, dropout: float = 0.0, **changes: Any) -> dict[str, Any]:
    outer = {**PARAMS["outer"], "rounds": rounds, **changes}
    outer["keep_received"] = -1
    return {**PARAMS, "model": {**PARAMS["model"], "dropout": dropout}, "outer": outer}


def resuming(rounds: int, after: int, **changes: Any) -> dict[str, Any]:
    return {
        **params(rounds, **changes),
        "start": {"job": EARLIER, "round": after, "resume": True, "done": after},
    }


def renamed(store: ObjectStore) -> None:
    """Let what the store keeps of the job be of an earlier one, so that the job begins anew."""
    for key in list(store.list(f"jobs/{JOB}/")):
        data = store.get(key)
        if key.endswith(".json"):
            data = data.replace(JOB.encode(), EARLIER.encode())
        store.put(key.replace(JOB, EARLIER), data)
        store.delete(key)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("names", "outer"),
    [
        # Torch's global generator, which dropout draws from, is one for all threads here.
        (("fr-1",), {"dropout": 0.1, "code": "int8"}),
        (NAMES, {"fragments": 2, "delay": 2, "mix": 0.25}),
    ],
)
def test_it_ends_where_it_would_have_ended_with_no_token_read_twice_or_left_out(leg, names, outer):
    whole = federation(leg, names, params=params(4, **outer))
    together(whole)
    hub = Hub(names)
    first = [CutOff(hub, *leg(name, names, params=params(4, **outer))) for name in names]
    together(first)
    hub = Hub(names)
    for site in first:
        assert Keep(site.store, JOB).rounds()[-1] == 2
        renamed(site.store)
    again = [Site(hub, replace(site.context, params=resuming(2, 2, **outer)), site.store) for site in first]
    together(again)
    assert digests(again) == digests(whole)
    assert {site.final.position for site in again} == {site.final.position for site in whole}
    assert not [one for one, _ in hub.artifacts if one.round == 0], "every site has its own state: none is sent"
    replayed = replay(again[0].store, JOB, kept_params(again[0].store, JOB))
    assert {one.result for one in replayed} == {"verified"}
    assert all("the momentum it starts from is this site's own word" in one.what for one in replayed)


@pytest.mark.integration
@pytest.mark.parametrize(("fragments", "thinned", "said"), [
    (1, (), f"consortium submit pretrain --resume {EARLIER} start.round=3;"),
    (1, (3,), f"consortium submit pretrain --resume {EARLIER} start.round=2;"),
    (2, (), f"consortium submit pretrain --resume {EARLIER} start.round=2;"),
    (1, (1, 2, 3), "submit it as a new job"),
])  # fmt: skip
def test_a_round_that_was_closed_and_not_kept_any_more_names_the_command_that_resumes(leg, fragments, thinned, said):
    (site,) = federation(leg, ("fr-1",), params=params(4, fragments=fragments))
    together([site])
    for number in thinned:
        Keep(site.store, JOB).thin(number)
    site.store.delete(f"jobs/{JOB}/outer/4/state.json")
    renamed(site.store)
    asked = PretrainConfig.of(resuming(4, 4, fragments=fragments))
    with pytest.raises(NotFoundError, match=r"keeps rounds 0 to 3 .* not its state after round 4") as fault:
        resumed(site.store, asked, Keep(site.store, EARLIER).origin(2), 64)
    assert said in str(fault.value.fix)


class Workers(SpoilingWorker):
    """Reads in one process what as many workers as there are GPUs would."""

    gpus = 1

    def __init__(self, params: PretrainConfig, *given: Any) -> None:
        data = replace(params.data, batch_size=params.data.batch_size * self.gpus)
        super().__init__(replace(params, data=data), *given)


LATE = {"fragments": 2, "delay": 2, "mix": 0.25}


@pytest.fixture
def resumed_on(leg, monkeypatch) -> Any:
    """A federation that was cut off with one GPU at each site, and is resumed with so many."""
    monkeypatch.setattr("tests.train.test_leg.SpoilingWorker", Workers)

    def make(gpus: int) -> list[Site]:
        monkeypatch.setattr(Workers, "gpus", 1)
        hub = Hub(NAMES)
        first = [CutOff(hub, *leg(name, NAMES, params=params(4, **LATE))) for name in NAMES]
        together(first)
        hub = Hub(NAMES)
        for site in first:
            renamed(site.store)
        monkeypatch.setattr(Workers, "gpus", gpus)
        context = {"params": resuming(2, 2, **LATE), "gpus": gpus}
        return [Site(hub, replace(site.context, **context), site.store) for site in first]

    return make


@pytest.mark.integration
@pytest.mark.parametrize(("gpus", "kept"), [(1, 2), (2, 0)])
def test_steps_done_already_are_kept_where_as_many_workers_did_them_and_else_done_again(resumed_on, gpus, kept):
    sites = resumed_on(gpus)
    size = Keep(sites[0].store, EARLIER).origin(2).layout.size
    before = [Keep(site.store, EARLIER).outer(2, size) for site in sites]
    together(sites)
    assert len(digests(sites)) == 1
    for number in (1, 2):
        found = sites[0].hub.rounds[number]
        assert [part.site for part in found.certificate.contributions] == list(NAMES), found.verdicts
        assert {(one.steps, one.tokens) for one in found.commits} == {(4, 4 * 64 * gpus)}
    for site, state in zip(sites, before, strict=True):
        begun = Keep(site.store, JOB).outer(0, size)
        assert begun.ahead.steps == kept
        assert begun.ahead.position == state.position + 4 * kept, "no sequence is left out, and none counts twice"
        assert begun.moments.steps == state.moments.steps - 2 + kept
        assert site.final.position == state.position + 2 * 4 * 4 * gpus
        assert (begun.ahead.local == state.ahead.local).all() == (kept > 0)


@pytest.mark.integration
def test_who_lost_what_it_contributed_cannot_undo_the_steps_after_it(resumed_on):
    sites = resumed_on(2)
    for site in sites:
        site.store.delete(f"jobs/{EARLIER}/rounds/2/contribution.json")
    together(sites)
    assert {type(site.fault) for site in sites} == {NotFoundError}
    assert "the same gpus" in str(sites[0].fault.fix)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("after", "outer", "done"),
    [
        (1, {"delay": 4, "mix": 0.5, "taper": 0.3}, 5),  # rounds that shorten have more steps than `inner_steps`, too
        (2, {"delay": 2, "pace": "measured"}, 4),
    ],
)
def test_steps_that_another_job_did_ahead_are_believed_as_many_as_it_can_have_done(
    leg, monkeypatch, tmp_path, after, outer, done
):
    for module in ("leg", "screen"):  # this site is twice as fast as another
        monkeypatch.setattr(f"consortium.train.{module}.steps_of", lambda _, seen, usual: usual * (2 if seen else 1))
    (first,) = [CutOff(Hub(("fr-1",)), *leg("fr-1", ("fr-1",), params=params(4, **outer)))]
    first.dies_in = after + 1
    together([first])
    renamed(first.store)
    given = resuming(4 - after, after, **outer)
    (again,) = sites = [Site(Hub(("fr-1",)), replace(first.context, params=given), first.store)]
    together(sites)
    assert len(digests(sites)) == 1
    assert Keep(again.store, JOB).outer(0, len(again.final.outer)).ahead.steps == done
    job = PretrainConfig.of(given)
    text = open_sequences(again.store, again.context.inputs, job.model.context, VOCAB)
    worker = InnerWorker(job, VOCAB, text, "fr-1")
    redone = re_execute(Keep(again.store, JOB), worker, job, 1, worker.layout.size)
    assert (redone.same_bits, redone.holds) == (True, True)


@pytest.mark.integration
def test_the_state_that_a_cycle_of_fragments_ended_with_stays_whole_until_the_next_one_has(leg):
    def job(made: dict[str, Any]) -> dict[str, Any]:
        return {**made, "model": {**made["model"], "layers": 3}}

    thin = {"fragments": 3, "keep_whole": 2}
    whole = federation(leg, ("fr-1",), params=job(params(6, fragments=3)))
    together(whole)
    site = CutOff(Hub(("fr-1",)), *leg("fr-1", ("fr-1",), params=job(params(6, **thin))))
    site.dies_in = 6
    together([site])
    keep = Keep(site.store, JOB)
    assert [keep.thinned(number) for number in keep.rounds()] == [True, True, True, False, False, False]
    renamed(site.store)
    given = {**job(params(3, **thin)), "start": {"job": EARLIER, "round": 3, "resume": True, "done": 3}}
    again = [Site(Hub(("fr-1",)), replace(site.context, params=given), site.store)]
    together(again)
    assert digests(again) == digests(whole)
    keep = Keep(site.store, JOB)
    assert [keep.thinned(number) for number in keep.rounds()] == [False, True, False, False]


@pytest.mark.integration
def test_a_site_that_does_not_keep_the_round_says_so(leg):
    (site,) = federation(leg, ("fr-1",), params=resuming(2, 2))
    together([site])
    assert isinstance(site.fault, NotFoundError)
    assert f"no outer state of {EARLIER}, not its state after round 2" in site.fault.what


def test_what_a_resumed_training_may_change_and_what_not():
    before = PretrainConfig.of(params(4))
    assert unlike(before, PretrainConfig.of(resuming(2, 2))) == ()
    assert unlike(before, PretrainConfig.of(resuming(2, 2, quorum=1))) == ()
    again = PretrainConfig.of(resuming(2, 2))
    other = replace(again, seed=8, optim=replace(again.optim, lr=0.5))
    assert unlike(before, other) == ("optim.lr is 0.5, and was 0.01", "seed is 8, and was 7")
    (longer,) = unlike(before, PretrainConfig.of(resuming(6, 2)))
    assert longer == "a cosine rate comes down over 4 rounds, not 8: only wsd can be prolonged"
    third = {**params(1), "start": {"job": JOB, "round": 1, "resume": True, "done": 3}}
    assert unlike(again, PretrainConfig.of(third)) == ()
    (miscounted,) = unlike(again, PretrainConfig.of({**params(3), "start": {**third["start"], "done": 1}}))
    assert miscounted.startswith("start.done is 1, and 3 rounds are done")
    halves = unlike(PretrainConfig.of(params(4, fragments=2)), PretrainConfig.of(resuming(2, 1, fragments=2)))
    assert "round 1 is in the middle of a cycle of 2 fragments" in halves
