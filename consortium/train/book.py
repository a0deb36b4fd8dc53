"""What a site keeps at home to audit a training run: every round as it was certified, and its peers' contributions.

    jobs/<job>/outer.json                           the outer loop's settings
    jobs/<job>/rounds/<k>/round.json                commits, verdicts, rulings and certificate, with their signatures
    jobs/<job>/rounds/<k>/received/<sha256>.bin     a peer's contribution as it was committed, while it is retained

The round is always kept: some kilobytes. A contribution is as large as what crossed the border, so how many rounds of
them are kept is a setting of the job (`outer.keep_received`); `cost_bytes` says what it takes.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from consortium.domain.codec import from_json, to_json
from consortium.domain.training import Round
from consortium.errors import NotFoundError, UsageError, VerificationError

if TYPE_CHECKING:
    from consortium.storage.objects import ObjectStore


class RoundBook:
    """The private store as an auditor of one job reads it, and its leg writes it."""

    def __init__(self, store: ObjectStore, job: str) -> None:
        self._store = store
        self._root = f"jobs/{job}/rounds"
        self._settings = f"jobs/{job}/outer.json"
        self._swept: int | None = None

    def note(self, settings: Any) -> None:
        """Keep the outer loop's settings: a dataclass or plain JSON."""
        self._store.put(self._settings, json.dumps(to_json(settings), sort_keys=True).encode())

    def settings(self) -> Any:
        """Return the settings kept, as JSON. Raises NotFoundError, or VerificationError where they do not read back."""
        try:
            return json.loads(self._store.get(self._settings))
        except ValueError as fault:
            raise VerificationError(f"not readable as JSON: {fault}", where=self._settings) from fault

    def save(self, round_: Round) -> None:
        """Keep a certified round."""
        self._store.put(
            f"{self._root}/{round_.number}/round.json", json.dumps(to_json(round_), sort_keys=True).encode()
        )

    def round(self, number: int) -> Round | None:
        """Return a round, or None where it is not kept. Raises VerificationError where it does not read back."""
        key = f"{self._root}/{number}/round.json"
        try:
            return from_json(Round, json.loads(self._store.get(key)), where=key)
        except NotFoundError:
            return None
        except (UsageError, ValueError) as fault:
            raise VerificationError(f"the round does not read back: {fault}", where=key) from fault

    def numbers(self) -> list[int]:
        """Return the rounds kept, ascending."""
        keys = (key.removeprefix(f"{self._root}/") for key in self._store.list(f"{self._root}/"))
        return sorted(int(key.split("/")[0]) for key in keys if key.endswith("/round.json"))

    def save_received(self, number: int, data: bytes) -> None:
        """Keep a peer's contribution to a round as it was committed."""
        self._store.put_addressed(f"{self._root}/{number}/received", data, ".bin")

    def contribution(self, number: int, digest: str) -> bytes | None:
        """Return a contribution, a peer's or this site's own, or None where it is not kept.

        Raises VerificationError where its bytes changed.
        """
        data = self.received(number, digest)
        return data if data is not None else self.own(number, digest)

    def received(self, number: int, digest: str) -> bytes | None:
        """Return a peer's contribution, or None where it is not kept.

        Raises VerificationError where its bytes changed.
        """
        key = f"{self._root}/{number}/received/{digest.removeprefix('sha256:')}.bin"
        try:
            return self._store.get(key, digest=digest)
        except NotFoundError:
            return None

    def own(self, number: int, digest: str) -> bytes | None:
        """Return this site's own contribution (`consortium.train.keep` keeps it), or None where it is not kept."""
        for suffix in (".f32", ".code"):
            try:
                return self._store.get(f"{self._root}/{number}/{digest.removeprefix('sha256:')}{suffix}", digest=digest)
            except NotFoundError:
                continue
        return None

    def retain(self, newest: int, rounds: int) -> None:
        """Drop peers' contributions to all rounds before the last `rounds` up to `newest`; -1 keeps all.

        What lies about from long ago is looked for once: afterwards only what fell out since.
        """
        if rounds < 0 or newest <= rounds:
            return
        last = newest - rounds
        held = self._held() if self._swept is None else set(range(self._swept + 1, last + 1))
        for number in sorted(number for number in held if number <= last):
            for key in sorted(self._store.list(f"{self._root}/{number}/received/")):
                self._store.delete(key)
        self._swept = last

    def _held(self) -> set[int]:
        """Return the rounds of which contributions of peers are kept."""
        keys = (key.removeprefix(f"{self._root}/").split("/") for key in self._store.list(f"{self._root}/"))
        return {int(parts[0]) for parts in keys if "received" in parts}


def cost_bytes(rounds: int, retained: int, sites: int, contribution_bytes: int) -> int:
    """Return the bytes that retained contributions of peers take at one site at the most.

    `contribution_bytes` is one contribution as it crosses a border: 4 per parameter without a code.
    """
    held = rounds if retained < 0 else min(rounds, retained)
    return held * max(0, sites - 1) * contribution_bytes
