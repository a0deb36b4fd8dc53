"""`logs` prints one document, or a line for what is new; it says why there is nothing to see."""

from __future__ import annotations

import json
from typing import Any

import pytest

from consortium.cli import logs
from tests.conftest import Call


class Server:
    """A server that answers with the pages laid down for it, the last one again and again."""

    def __init__(self, *pages: dict[str, Any]) -> None:
        self.pages = list(pages)
        self.asked = 0

    def __call__(self, *_: Any, **__: Any) -> Server:
        return self

    def client(self) -> Server:
        return self

    def logs(self, job: str, *, site: str = "", after: int = 0) -> dict[str, Any]:
        self.asked += 1
        return self.pages.pop(0) if len(self.pages) > 1 else self.pages[0]


def page(number: int, *texts: str, final: bool = False, withheld: tuple[str, ...] = ()) -> dict[str, Any]:
    chunks = [{"seq": number, "site": "fr-1", "text": text} for text in texts]
    return {"chunks": chunks, "next": number, "withheld": list(withheld), "final": final}


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_POLL_S", 0.0)


def served(monkeypatch: pytest.MonkeyPatch, *pages: dict[str, Any]) -> Server:
    server = Server(*pages)
    monkeypatch.setattr(logs, "Caller", server)
    return server


def test_json_is_one_document_whatever_the_pages(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    served(monkeypatch, page(1, "a\n"), page(2, "b\n", "c\n"), page(2, final=True))
    shown = call("logs", "job-1", "--json")
    found = json.loads(shown.out)
    assert [chunk["text"] for chunk in found["chunks"]] == ["a\n", "b\n", "c\n"]
    assert (found["next"], found["final"], found["withheld"]) == (2, True, [])


def test_followed_json_is_a_line_for_what_is_new(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    served(monkeypatch, page(0), page(0), page(3, "a\nb\n"), page(3), page(3), page(4, "c\n"), page(4, final=True))
    shown = call("logs", "job-1", "-f", "--json")
    lines = [json.loads(line) for line in shown.out.splitlines()]
    assert [[chunk["text"] for chunk in line["chunks"]] for line in lines] == [["a\nb\n"], ["c\n"]]
    assert shown.err == "no log yet; it is shown as it comes\n"


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (page(0), "no log yet\n"),
        (
            page(0, final=True),
            "no log: the job ended without one, or its sites sent none within a week of its end\n"
            "  what was written lies in each site's private store, under jobs/JOB/logs/\n",
        ),
        (page(0, withheld=("uy-1",)), "uy-1 keeps its logs at home: its partner's policy does not release them\n"),
        (page(1, "a\n", final=True), ""),
    ],
)
def test_silence_is_explained(call: Call, monkeypatch: pytest.MonkeyPatch, first: dict[str, Any], said: str) -> None:
    served(monkeypatch, first)
    for arguments in ([], ["--json"]):
        assert call("logs", "job-1", *arguments).err == said


def test_following_ends_when_nobody_reads(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    server = served(monkeypatch, page(1, "a\n"), page(2, "b\n"), page(3, "c\n"), page(3))
    monkeypatch.setattr(logs, "reader_gone", lambda: server.asked == 2)
    assert call("logs", "job-1", "-f").out == "fr-1 | a\nfr-1 | b\n"
