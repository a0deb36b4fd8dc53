"""The one writer of a log: a SQLite database is the truth, tiles and checkpoint are derived from it and repaired."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from consortium.errors import ConfigError, ConflictError, NotFoundError, UnreachableError, UsageError, VerificationError
from consortium.keys.canonical import canonical
from consortium.keys.signing import SigningKey
from consortium.ledger import tiles, tree
from consortium.ledger.notes import check_name, sign_note
from consortium.ledger.proofs import Checkpoint, checkpoint_text, parse_checkpoint

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    idx INTEGER PRIMARY KEY, record_id TEXT NOT NULL UNIQUE, data BLOB NOT NULL,
    salt BLOB, payload BLOB, erased TEXT NOT NULL DEFAULT '',
    CHECK (length(data) = 32 AND (erased = '') = (salt IS NOT NULL) AND (erased = '') = (payload IS NOT NULL)));
CREATE TABLE IF NOT EXISTS hashes (
    level INTEGER NOT NULL, idx INTEGER NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (level, idx)) WITHOUT ROWID;
"""
_PAGE = 10_000
_COLUMNS = "idx, record_id, data, salt, payload, erased"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One leaf: `data` (hex, 32 bytes) is SHA-256(salt || canonical payload); salt and payload may have been erased."""

    index: int
    record_id: str
    data: str
    salt: str
    """Hex; empty where erased."""
    payload: dict[str, Any] | None
    erased: str = ""
    """The order under which the payload was erased; empty where it was not."""


class Ledger:
    """An append-only log in folder `dir`, signed with `key` as `name`. Threads may share it; processes may not.

    Opening raises ConflictError where another writer holds it, VerificationError where the database does not extend
    the last checkpoint, and repairs tiles and checkpoint after a crash.
    """

    def __init__(self, dir: str | Path, key: SigningKey, name: str) -> None:
        self.dir = Path(dir)
        self.name = check_name(name)
        self._key = key
        self._mutex = threading.RLock()
        self.dir.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.dir / "lock")
        try:
            self._db = self._connect()
            self._size: int = self._db.execute("SELECT count(*) FROM entries").fetchone()[0]
            self._root = tree.root(self._stored, self._size)
            self._repair()
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database and of the writer's lock; closing twice does no harm."""
        with self._mutex:
            self._db.close()
            if self._lock >= 0:
                os.close(self._lock)
            self._lock = -1

    @property
    def size(self) -> int:
        """How many leaves the log has."""
        return self._size

    @property
    def root(self) -> str:
        """The root over all leaves, hex."""
        return self._root.hex()

    def checkpoint(self) -> str:
        """Return the signed note of size and root (https://c2sp.org/tlog-checkpoint)."""
        return self._note

    def append(self, records: Sequence[tuple[str, Any]]) -> list[int]:
        """Append (record id, payload) pairs durably, in one transaction, and return their indices.

        An id that is there already keeps its index; with another payload it raises ConflictError, and nothing of the
        batch is appended.
        """
        with self._mutex:
            first = self._size
            with self._transaction():
                indices, fresh = self._insert(records)
                made = tree.grow(self._stored, first, [tree.hash_leaf(data) for data in fresh])
                self._db.executemany("INSERT INTO hashes VALUES (?, ?, ?)", made)
            self._size += len(fresh)
            if self._published != self._size:
                self._root = tree.root(self._stored, self._size)
                self._publish(tiles.tiles(self._size, self._published))
            return indices

    def find(self, record_id: str) -> int | None:
        """Return the index of a record, or None."""
        with self._mutex:
            row = self._db.execute("SELECT idx FROM entries WHERE record_id = ?", (record_id,)).fetchone()
        return None if row is None else int(row[0])

    def entry(self, index: int) -> Entry:
        """Return one leaf; raises NotFoundError, or VerificationError where the database was tampered with."""
        found = self.entries(index, 1)
        if not found:
            raise NotFoundError(f"the log has no entry {index}", where=f"log {self.name}, {self._size} entries")
        return found[0]

    def entries(self, start: int = 0, count: int | None = None) -> list[Entry]:
        """Return up to `count` leaves from `start` (all the rest where None), in order."""
        with self._mutex:
            rows = self._db.execute(
                f"SELECT {_COLUMNS} FROM entries WHERE idx >= ? ORDER BY idx LIMIT ?",  # noqa: S608  constant columns
                (start, -1 if count is None else count),
            ).fetchall()
        return [_entry(row) for row in rows]

    def inclusion(self, index: int, size: int | None = None) -> list[str]:
        """Return the hex hashes proving leaf `index` in the tree of `size` leaves (now where None)."""
        with self._mutex:
            size = self._size if size is None else size
            if not 0 <= index < size <= self._size:
                raise UsageError(f"no proof of entry {index} in {size} leaves: the log has {self._size}")
            return [h.hex() for h in tree.inclusion(self._stored, index, size)]

    def consistency(self, old: int, new: int | None = None) -> list[str]:
        """Return the hex hashes proving that the tree of `new` leaves (now where None) extends that of `old`."""
        with self._mutex:
            new = self._size if new is None else new
            if not 0 <= old <= new <= self._size:
                raise UsageError(f"no proof from {old} to {new} leaves: the log has {self._size}")
            return [h.hex() for h in tree.consistency(self._stored, old, new)]

    def root_at(self, size: int) -> str:
        """Return the root over the first `size` leaves, hex."""
        with self._mutex:
            if not 0 <= size <= self._size:
                raise UsageError(f"no root of {size} leaves: the log has {self._size}")
            return tree.root(self._stored, size).hex()

    def erase(self, index: int, order: str) -> None:
        """Forget salt and payload of a leaf under `order`; its 32 bytes stay, so every proof still holds."""
        if not order:
            raise UsageError("an erasure needs the order it is done under")
        with self._mutex:
            if self.entry(index).erased:
                return
            with self._transaction():
                self._db.execute(
                    "UPDATE entries SET salt = NULL, payload = NULL, erased = ? WHERE idx = ?", (order, index)
                )
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def check(self) -> None:
        """Recompute every leaf and the whole tree from the database; raises VerificationError at the first fault."""
        edge: list[tuple[int, bytes]] = []
        pages = (self.entries(start, _PAGE) for start in range(0, self._size, _PAGE))
        for expected, entry in enumerate(entry for page in pages for entry in page):
            if entry.index != expected:
                raise VerificationError(f"entry {expected} is missing from the log", where=str(self.dir))
            edge.append((1, tree.hash_leaf(bytes.fromhex(entry.data))))
            while len(edge) > 1 and edge[-2][0] == edge[-1][0]:
                (count, right), (_, left) = edge.pop(), edge.pop()
                edge.append((2 * count, tree.hash_node(left, right)))
        value = edge.pop()[1] if edge else tree.EMPTY_ROOT
        while edge:
            value = tree.hash_node(edge.pop()[1], value)
        if value != self._root:
            raise VerificationError("the log's entries do not give its root", where=str(self.dir))

    def _connect(self) -> sqlite3.Connection:
        path = self.dir / "ledger.db"
        try:
            db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA secure_delete=ON;" + _SCHEMA)
        except sqlite3.DatabaseError as fault:
            raise ConfigError(f"cannot open the ledger's database: {fault}", where=str(path)) from fault
        return db

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except BaseException as fault:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(fault, sqlite3.OperationalError):
                raise UnreachableError(f"the ledger cannot be written: {fault}", where=str(self.dir)) from fault
            raise

    def _insert(self, records: Sequence[tuple[str, Any]]) -> tuple[list[int], list[bytes]]:
        indices: list[int] = []
        fresh: list[bytes] = []
        for record_id, payload in records:
            content = canonical(payload)
            row = self._db.execute(f"SELECT {_COLUMNS} FROM entries WHERE record_id = ?", (record_id,)).fetchone()  # noqa: S608  constant columns
            if row is not None:
                if row[4] is not None and row[4] != content:
                    raise ConflictError(f"record {record_id} is in the log already, with other content")
                indices.append(row[0])
                continue
            salt = secrets.token_bytes(32)
            data, index = hashlib.sha256(salt + content).digest(), self._size + len(fresh)
            self._db.execute(
                f"INSERT INTO entries ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, '')",  # noqa: S608  constant columns
                (index, record_id, data, salt, content),
            )
            fresh.append(data)
            indices.append(index)
        return indices, fresh

    def _stored(self, level: int, index: int) -> bytes:
        row = self._db.execute("SELECT hash FROM hashes WHERE level = ? AND idx = ?", (level, index)).fetchone()
        if row is None:
            raise VerificationError(f"the log's hash {level}/{index} is missing", where=str(self.dir))
        return bytes(row[0])

    def _repair(self) -> None:
        path = self.dir / "checkpoint"
        if path.exists():
            last = self._last(path)
            if last.size > self._size or self.root_at(last.size) != last.root:
                raise VerificationError(
                    f"the ledger's database ({self._size} entries) does not extend its last checkpoint ({last.size})",
                    where=str(self.dir),
                    fix="restore the whole folder from one backup; do not delete the checkpoint to get past this",
                )
        self._publish(tiles.missing(self.dir, self._size))

    def _last(self, path: Path) -> Checkpoint:
        try:
            return parse_checkpoint(path.read_text(encoding="utf-8"), self.name, self._key.public)
        except (VerificationError, UnicodeDecodeError) as fault:
            why = fault.what if isinstance(fault, VerificationError) else "it is not UTF-8 text"
            raise VerificationError(
                f"the ledger's last checkpoint does not hold: {why}",
                where=str(path),
                fix="restore the whole folder from one backup, and the key that the ledger was begun with",
            ) from fault

    def _publish(self, changed: Iterator[tiles.Tile]) -> None:
        for tile in changed:
            start = tile.index * tiles.WIDTH
            query = (
                "SELECT data FROM entries WHERE idx >= ? AND idx < ? ORDER BY idx"
                if tile.level < 0
                else f"SELECT hash FROM hashes WHERE level = {8 * tile.level} AND idx >= ? AND idx < ? ORDER BY idx"  # noqa: S608  an integer
            )
            items = [row[0] for row in self._db.execute(query, (start, start + tile.width))]
            tiles.write(self.dir, tile, tiles.bundle(items) if tile.level < 0 else b"".join(items))
        self._note = sign_note(checkpoint_text(self.name, self._size, self._root), self.name, self._key)
        # Tiles are made anew from the database; a checkpoint that a loss of power left empty would stop the next start.
        tiles.replace_file(self.dir / "checkpoint", self._note.encode(), durable=True)
        self._published = self._size


def _entry(row: tuple[int, str, bytes, bytes | None, bytes | None, str]) -> Entry:
    index, record_id, data, salt, payload, erased = row
    if salt is None or payload is None:
        return Entry(index=index, record_id=record_id, data=data.hex(), salt="", payload=None, erased=erased)
    intact = isinstance(salt, bytes) and isinstance(payload, bytes)
    if not intact or hashlib.sha256(salt + payload).digest() != data:
        raise VerificationError(f"entry {index} ({record_id}) of the log was changed in its database")
    return Entry(index=index, record_id=record_id, data=data.hex(), salt=salt.hex(), payload=json.loads(payload))


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as fault:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise ConflictError(
            f"another process writes this ledger already (process id {holder})",
            where=str(path.parent),
            fix="stop that server first; a ledger has one writer",
        ) from fault
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor
