"""`audit log` shows what the checkpoint stands for, whatever the server answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from consortium.cli import audit
from consortium.domain.codec import to_json
from consortium.errors import VerificationError
from consortium.keys.signing import SigningKey
from consortium.ledger.log import Ledger
from tests.reports import builders as b


@dataclass
class Server:
    """A server that answers from a log, or lies."""

    log: Ledger
    note: str = ""
    change: Any = None

    def client(self) -> Server:
        return self

    def checkpoint(self) -> str:
        return self.note or self.log.checkpoint()

    def entries(self, start: int = 0, count: int = 100) -> Any:
        found = to_json(self.log.entries(start, count))
        return found if self.change is None else self.change(found)

    def inclusion(self, index: int, size: int | None = None) -> dict[str, Any]:
        return {"inclusion": self.log.inclusion(index, size)}


WORLD = b.example()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with WORLD.log(tmp_path / "log") as log:
        log.erase(log.size - 1, "order 7")
        made = Server(log)
        monkeypatch.setattr(audit, "Caller", lambda *_, **__: made)
        monkeypatch.setenv("CONSORTIUM_SERVER", "http://127.0.0.1:9")
        yield made


@pytest.fixture
def trust(tmp_path: Path) -> Path:
    path = tmp_path / "trust.json"
    WORLD.trust.save(path)
    return path


def show(count: int = 5, trust: Path | None = None, as_json: bool = False) -> None:
    audit.log(count=count, trust=trust, as_json=as_json, person="")


def test_the_end_of_the_log_is_shown_and_whose_keys_it_rests_on(
    server: Server, trust: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show(trust=trust)
    found = capsys.readouterr()
    assert "erased under order 7" in found.out
    assert f"5 leaves are those of the checkpoint; signed with the key pinned in {trust}" in found.err
    show(count=1000)
    assert "its signature is not checked" in capsys.readouterr().err
    show(as_json=True)
    assert [one["index"] for one in json.loads(capsys.readouterr().out)["entries"]] == [
        *range(server.log.size - 5, server.log.size)
    ]


def test_an_empty_log_is_shown(tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger(tmp_path / "empty", WORLD.keys["server"], b.NAME) as log:
        server.log = log
        show()
    assert "the log is empty" in capsys.readouterr().err


def one(at: int, **changes: Any) -> Any:
    """Return a change of one of the entries that a server answers with."""
    return lambda found: [*found[:at], found[at] | changes, *found[at + 1 :]]


HIDDEN = {"payload": None, "erased": "order 8", "data": "00" * 32}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda found: [], "0 leaves are given where 5 follow"),
        (lambda found: found[1:], "answered with entry"),
        (one(0, payload={"type": "approval", "origin": "fr-1", "at_ms": 10**18}), "not that of its record"),
        (one(0, **HIDDEN), "not proven"),
        (one(2, **HIDDEN), "not those of the log"),
        (one(0, payload=None), "neither whole nor erased"),
        (one(0, record_id="fr-1:77"), "holds another record"),
        (one(0, data="zz"), "no entries of a log"),
        (lambda found: [{"index": 0}], "no entries of a log"),
        (lambda found: "nonsense", "no entries of a log"),
    ],
)
def test_entries_that_are_not_those_of_the_checkpoint_are_found(server: Server, change: Any, why: str) -> None:
    server.change = change
    with pytest.raises(VerificationError, match=why):
        show()


def test_a_checkpoint_of_nobody_is_found(server: Server, trust: Path, tmp_path: Path) -> None:
    server.note = "evil.log\n2\nAAAA\n"
    for given in (None, trust):
        with pytest.raises(VerificationError):
            show(trust=given)
    server.note = ""
    other = tmp_path / "other.json"
    replace(WORLD.trust, log_key=SigningKey.generate().public).save(other)
    with pytest.raises(VerificationError, match="no signature by"):
        show(trust=other)
