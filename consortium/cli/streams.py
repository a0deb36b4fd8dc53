"""Standard output and error as commands write them: whoever reads them has no say in a command's exit code.

Nor has their encoding: a sign that it lacks is written as JSON writes it, `\\u2026`, so that JSON stays JSON.

Talk that cannot be written is lost without a word, and so is what a reader that has gone away would have got, as in
`consortium jobs | head -1`. Data that cannot be written for another reason, such as a full disk, is an error.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from consortium.errors import ConsortiumError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


_ESCAPED = "consortium.escaped"


class Outlet(io.FileIO):
    """A file descriptor of somebody else's. From the first write that fails on, what comes is dropped."""

    def __init__(self, descriptor: int, failed: Callable[[OSError], None]) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._failed = failed
        self.gone = False

    def write(self, data: ReadableBuffer, /) -> int:
        """Write; the first failure is handed on, once."""
        if not self.gone:
            try:
                return super().write(data)
            except OSError as fault:
                self.gone = True
                self._failed(fault)
        return memoryview(data).nbytes


def settle() -> None:
    """Let standard output and error be written through an `Outlet`, and to nowhere where the caller closed them."""
    codecs.register_error(_ESCAPED, _escaped)
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # else the next file that is opened becomes standard output
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = _text(1, sys.stdout, _answer_lost)
    sys.stderr = _text(2, sys.stderr, _talk_lost)


def reader_gone() -> bool:
    """Whether nobody reads standard output any more: what has no end of its own may stop."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, Outlet) and raw.gone


def _text(descriptor: int, was: TextIO | None, failed: Callable[[OSError], None]) -> TextIO:
    outlet = io.BufferedWriter(Outlet(descriptor, failed))
    lines = descriptor == 2 or outlet.isatty()
    if isinstance(was, io.TextIOWrapper):
        was.flush()
        lines = lines or was.line_buffering or was.write_through
        errors = _ESCAPED if was.errors == "strict" else was.errors
        return io.TextIOWrapper(outlet, encoding=was.encoding, errors=errors, line_buffering=lines)
    return io.TextIOWrapper(outlet, encoding="utf-8", errors="backslashreplace", line_buffering=lines)


def _escaped(fault: UnicodeError) -> tuple[str, int]:
    """Write what an encoding lacks as escapes of JSON."""
    assert isinstance(fault, UnicodeEncodeError)
    units = fault.object[fault.start : fault.end].encode("utf-16-be", "surrogatepass")
    pairs = (units[at : at + 2].hex() for at in range(0, len(units), 2))
    return "".join(f"\\u{pair}" for pair in pairs), fault.end


def _answer_lost(fault: OSError) -> None:
    if not isinstance(fault, BrokenPipeError):
        raise ConsortiumError(
            f"the output could not be written: {fault.strerror or fault}",
            where="standard output",
            fix="make room there, or send it elsewhere",
        ) from fault


def _talk_lost(_: OSError) -> None:
    """Talk is for somebody who looks; nobody does."""
