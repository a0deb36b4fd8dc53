"""The readers in a process of its own: what a hostile file can do to a parser ends there.

The child has a bounded address space, each page a bounded time of computing (not of waiting: a busy machine changes no
outcome), and it hands over plain JSON. Where it dies, the item that it died of, or the rest of the file where that is
not known, is quarantined, and the next child goes on behind it.

Parent to child: a source, pickled, with the item to start at. Child to parent, a line each: `{"at": bytes of the file
read}`, `{"begin": number}` before an item that is timed, `{"items": [...]}`, `{"fault": ...}` of a store, `{"end": 1}`.
"""

from __future__ import annotations

import base64
import json
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import IO, Any

from consortium.data.documents import Document
from consortium.data.readers import formats, streams
from consortium.data.readers.items import Item, Quarantined
from consortium.data.readers.sources import Source
from consortium.errors import ConsortiumError, JobFailedError, by_slug

MEMORY_BYTES = 3 << 30
"""Address space of the child: its libraries take about 1 GB of it, much of which is never touched."""
PAGE_CPU_S = 20.0
"""Seconds of computing for one page or record; the slowest of real ones take about one."""
MAX_DEATHS = 20
"""Items of one file that may cost the child its life before the rest of the file is given up."""
_FLUSH_ITEMS = 256
_FLUSH_CHARS = 1 << 20
_MAX_ANSWER_BYTES = 256 << 20


class Reader:
    """Reads files in a child process, which is started when it is needed. Close it, or use it in a `with`."""

    def __init__(self, *, page_cpu_s: float = PAGE_CPU_S, memory_bytes: int = MEMORY_BYTES) -> None:
        self._page_cpu_s, self._memory_bytes = page_cpu_s, memory_bytes
        self._child: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._answered = False
        """Whether any child of this reader ever spoke."""

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, source: Source, start: int = 0, moved: Callable[[int], None] = lambda _: None) -> Iterator[Item]:
        """Yield what `formats.read_file` yields of a file, from item `start` on. Raises errors of the file's store."""
        whole = False
        try:
            yield from self._read(source, start, moved)
            whole = True
        finally:
            if not whole:  # its answers are not all taken: they must not be taken for the next file's
                self.close()

    def _read(self, source: Source, start: int, moved: Callable[[int], None]) -> Iterator[Item]:
        deaths = 0
        while True:
            answers = self._ask(source, start)
            begun = -1
            for answer in answers:
                if "items" in answer:
                    for item in answer["items"]:
                        start += 1
                        yield _item(item)
                elif "begin" in answer:
                    begun = int(answer["begin"])
                elif "at" in answer:
                    moved(int(answer["at"]))
                elif "fault" in answer:
                    raise by_slug(answer["fault"]["slug"])(
                        answer["fault"]["what"], where=answer["fault"]["where"], fix=answer["fault"]["fix"]
                    )
                elif "end" in answer:
                    return
            reason, detail = self._died()
            deaths += 1
            if begun < start or deaths > MAX_DEATHS:
                yield Quarantined(file=source.name, row=-1, reason=reason, detail=f"from item {start} on: {detail}")
                return
            yield Quarantined(file=source.name, row=begun, reason=reason, detail=detail)
            start = begun + 1

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()
        if self._said is not None:
            self._said.close()
            self._said = None

    def _ask(self, source: Source, start: int) -> Iterator[dict[str, Any]]:
        """Send a question; yield the answers up to the last, or as long as the child lives."""
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._said = tempfile.TemporaryFile()  # noqa: SIM115  as long as the child lives
            self._child = subprocess.Popen(
                [sys.executable, "-m", "consortium.data.readers.apart", str(self._page_cpu_s), str(self._memory_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
            )
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(base64.b64encode(pickle.dumps((source, start))) + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            return
        while line := child.stdout.readline(_MAX_ANSWER_BYTES):
            try:
                answer = json.loads(line)
            except ValueError:  # it died in the middle of a word
                return
            self._answered = True
            yield answer
            if "end" in answer or "fault" in answer:
                return

    def _died(self) -> tuple[str, str]:
        """Return why the child ended, and forget it. Raises JobFailedError where it never could work."""
        child, said = self._child, self._said
        assert child is not None
        assert said is not None
        try:
            code = child.wait(timeout=5)
        except subprocess.TimeoutExpired:  # it lives, and speaks nonsense
            child.kill()
            child.wait()
            code = -signal.SIGABRT
        said.seek(0)
        words = said.read().decode("utf-8", "replace").strip().splitlines()
        last = words[-1][:200] if words else ""
        self.close()
        if not self._answered:
            raise JobFailedError(f"the reader could not start: {last}", fix="check the installation: consortium doctor")
        if code in (-signal.SIGKILL, -signal.SIGTERM):
            raise JobFailedError(
                f"somebody ended the reader with signal {-code}: the machine may be out of memory",
                fix="run it again: it goes on where it was",
            )
        if code == -signal.SIGVTALRM:
            return "timeout", f"it took more than {self._page_cpu_s:g} s of computing"
        if "MemoryError" in last:
            return "memory", f"it took more than {self._memory_bytes >> 20} MB of memory"
        return "crash", f"the reader ended with {code}: {last}"


def _item(values: dict[str, Any]) -> Item:
    return Quarantined(**values) if "reason" in values else Document(**values)


_DOCUMENT = tuple(field.name for field in fields(Document))
_QUARANTINED = tuple(field.name for field in fields(Quarantined))


class _Child:
    """What runs on the other side."""

    def __init__(self, out: IO[bytes], page_cpu_s: float) -> None:
        self._out, self._page_cpu_s = out, page_cpu_s
        self._held: list[dict[str, Any]] = []
        self._chars = 0
        self._told = 0.0

    def answer(self, source: Source, start: int) -> None:
        self._say({"at": 0})
        timed = streams.inner_name(source.name).endswith(formats.SLOW)
        for number, item in enumerate(formats.later(source, self._moved)):
            if number < start:
                continue
            if timed:
                self._flush()
                self._say({"begin": number})
                signal.setitimer(signal.ITIMER_VIRTUAL, self._page_cpu_s)
            made = item()
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            names = _DOCUMENT if isinstance(made, Document) else _QUARANTINED
            self._held.append({name: getattr(made, name) for name in names})
            self._chars += len(made.text) if isinstance(made, Document) else 0
            if len(self._held) >= _FLUSH_ITEMS or self._chars >= _FLUSH_CHARS:
                self._flush()
        self._flush()
        self._say({"end": 1})

    def fault(self, fault: ConsortiumError) -> None:
        self._held.clear()
        said = {"slug": fault.slug, "what": fault.what, "where": fault.where, "fix": fault.fix}
        self._say({"fault": said})

    def _moved(self, at: int) -> None:
        now = time.monotonic()
        if now - self._told > 0.5:
            self._told = now
            self._say({"at": at})

    def _flush(self) -> None:
        if self._held:
            self._say({"items": self._held})
            self._held, self._chars = [], 0

    def _say(self, answer: dict[str, Any]) -> None:
        self._out.write(json.dumps(answer, ensure_ascii=False).encode("utf-8") + b"\n")
        self._out.flush()


def main() -> None:
    """Answer questions until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    page_cpu_s, memory_bytes = float(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    child = _Child(sys.stdout.buffer, page_cpu_s)
    sys.stdout = sys.stderr  # whatever a library prints is no answer
    for line in sys.stdin.buffer:
        source, start = pickle.loads(base64.b64decode(line))  # noqa: S301  from our parent
        try:
            child.answer(source, start)
        except ConsortiumError as fault:
            child.fault(fault)
        except BrokenPipeError:
            return


if __name__ == "__main__":
    main()
