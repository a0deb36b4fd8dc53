"""A server that is away costs a training time and nothing else."""

from __future__ import annotations

import threading
from io import BytesIO
from typing import Any

import pytest

from consortium.domain.pretraining import PretrainConfig
from consortium.errors import UnreachableError
from consortium.train.keep import Keep, Origin
from consortium.train.leg import FederatedLeg
from consortium.train.outlast import ASKED_OF_SERVER, Outlasting
from consortium.train.within import Stopped
from tests.train.conftest import PARAMS
from tests.train.hub import JOB, Hub, Line
from tests.train.test_pace import Silent, Simulated

pytestmark = pytest.mark.integration


class Away(Line):
    """A line on which the server is away whenever something is asked for the first time."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.asked: dict[str, int] = {}

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return found if name not in ASKED_OF_SERVER else lambda *given, **named: self.once(name, found, given, named)

    def once(self, name: str, call: Any, given: Any, named: Any) -> Any:
        key = f"{name} {given}"
        self.asked[key] = self.asked.get(key, 0) + 1
        if self.asked[key] == 1:
            raise UnreachableError("the server is away")
        return call(*given, **named)


def trained(leg: Any, line: type[Line]) -> tuple[set[str], list[Line]]:
    params = {**PARAMS, "outer": {**PARAMS["outer"], "rounds": 3, "inner_steps": 4, "delay": 2, "mix": 0.5}}
    hub, digests, lines, faults = Hub(("de-1", "fr-1")), set[str](), list[Line](), list[BaseException]()

    def live(site: str) -> None:
        try:
            context, store = leg(site, hub.sites, params=params)
            lines.append(mine := line(hub, context, store))
            origin = Origin(model={}, vocab_size=1, tokenizer_digest="", names=("a",), shapes=((8,),))
            parts = (
                mine,
                Keep(store, JOB),
                Simulated(1.0 + hub.sites.index(site)),
                PretrainConfig.of(params),
                origin,
                Silent(),
            )
            pause = threading.Event()
            final = FederatedLeg(*parts, sleep=lambda _: pause.wait(0.002)).run()
            digests.add(final.digest if final else "")
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=live, args=(site,), daemon=True) for site in hub.sites]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not faults
    return digests, lines


def test_every_call_may_find_the_server_away(leg):
    calm, _ = trained(leg, Line)
    again, lines = trained(leg, Away)
    assert again == calm
    assert len(calm) == 1
    for line in lines:
        assert {key.split()[0] for key in line.asked} == ASKED_OF_SERVER
        assert min(line.asked.values()) > 1, "each was asked again"


def test_a_leg_that_waits_for_the_server_can_be_told_to_stop():
    class Gone:
        def stopping(self) -> bool:
            return True

        def round(self, number: int) -> Any:
            raise UnreachableError("the server is away")

        def receive_into(self, artifact: Any, file: Any) -> int:
            raise UnreachableError("the sender's store is away")

    line = Outlasting(Gone(), lambda _: None).exchange  # type: ignore[arg-type]
    with pytest.raises(Stopped):
        line.round(1)
    with pytest.raises(UnreachableError, match="sender's store"):
        line.receive_into(None, BytesIO())  # type: ignore[arg-type]
