from __future__ import annotations

import base64
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consortium.errors import ConfigError, ConflictError, NotFoundError, UsageError, VerificationError
from consortium.keys.signing import SigningKey
from consortium.ledger import tiles, tree
from consortium.ledger.log import Ledger
from consortium.ledger.proofs import (
    advance,
    leaf_data,
    parse_checkpoint,
    verify_consistency,
    verify_inclusion,
)

KEY = SigningKey.generate()
NAME = "consortium.test/log"


def open_log(folder: Path, key: SigningKey = KEY) -> Ledger:
    return Ledger(folder, key, NAME)


def batch(start: int, count: int) -> list[tuple[str, dict[str, object]]]:
    return [(f"fr-1:{i}", {"seq": i, "body": {"gpu_ms": i * 2**50}}) for i in range(start, start + count)]


def test_every_entry_is_proven_against_the_signed_checkpoint(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        assert log.append(batch(0, 3)) == [0, 1, 2]
        assert log.append(batch(3, 300)) == list(range(3, 303))
        seen = parse_checkpoint(log.checkpoint(), NAME, KEY.public)
        assert (seen.size, seen.root) == (log.size, log.root) == (303, log.root)
        for index in (0, 2, 255, 256, 302):
            entry = log.entry(index)
            data = leaf_data(entry.salt, entry.payload)
            assert data.hex() == entry.data
            verify_inclusion(data, index, seen.size, log.inclusion(index), seen.root)
        verify_consistency(3, log.root_at(3), 303, log.root, log.consistency(3))
        log.check()


def test_appending_twice_changes_nothing_and_other_content_is_a_conflict(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append(batch(0, 5))
        before = log.checkpoint()
        assert log.append(batch(3, 2)) == [3, 4]
        assert log.checkpoint() == before
        assert log.append(batch(4, 2)) == [4, 5]
        assert log.append([*batch(6, 1), *batch(6, 1)]) == [6, 6]
        with pytest.raises(ConflictError, match="fr-1:0"):
            log.append([("fr-1:9", {}), ("fr-1:0", {"other": 1})])
        assert log.size == 7
        assert log.find("fr-1:9") is None
        assert log.find("fr-1:6") == 6


def test_equal_payloads_have_different_leaves(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append([("a", {"x": 1}), ("b", {"x": 1})])
        assert log.entry(0).data != log.entry(1).data


def test_an_erased_payload_is_gone_and_everything_still_verifies(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append([*batch(0, 9), ("secret", {"name": "find-me-in-the-file"})])
        entry, root = log.entry(9), log.root
        log.erase(9, "order 7 of 2026-01-01")
        log.erase(9, "order 8")
        gone = log.entry(9)
        assert (gone.payload, gone.salt, gone.erased, gone.data) == (None, "", "order 7 of 2026-01-01", entry.data)
        verify_inclusion(bytes.fromhex(gone.data), 9, 10, log.inclusion(9), root)
        log.check()
        assert log.append([("secret", {"name": "find-me-in-the-file"})]) == [9]
        with pytest.raises(UsageError, match="order"):
            log.erase(3, "")
        with pytest.raises(NotFoundError):
            log.erase(99, "order 9")
    assert not any(b"find-me" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    with open_log(tmp_path) as log:
        assert log.root == root


def test_questions_outside_the_log_are_refused(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        assert parse_checkpoint(log.checkpoint(), NAME, KEY.public).root == tree.EMPTY_ROOT.hex()
        log.append(batch(0, 4))
        for ask in (lambda: log.inclusion(4), lambda: log.inclusion(0, 5), lambda: log.consistency(3, 2)):
            with pytest.raises(UsageError, match="the log has 4"):
                ask()
        with pytest.raises(NotFoundError):
            log.entry(4)


class TestTiles:
    def read_hashes(self, folder: Path, level: int, size: int) -> list[bytes]:
        """Read a level's hashes from the files alone, as any C2SP client does."""
        found = b""
        for tile in tiles.tiles(size):
            if tile.level == level:
                found += (folder / tile.path).read_bytes()
        return [found[i : i + 32] for i in range(0, len(found), 32)]

    @settings(max_examples=8, deadline=None)
    @given(sizes=st.lists(st.integers(1, 300), min_size=1, max_size=4))
    def test_the_files_alone_give_the_root(self, sizes: list[int], tmp_path_factory) -> None:
        folder = tmp_path_factory.mktemp("log")
        with open_log(folder) as log:
            for size in sizes:
                log.append(batch(log.size, size))
        leaves = self.read_hashes(folder, 0, sum(sizes))
        stored = {(level, i): h for level, i, h in tree.grow(lambda *_: b"", 0, leaves)}
        seen = parse_checkpoint((folder / "checkpoint").read_text(), NAME, KEY.public)
        assert tree.root(lambda level, i: stored[level, i], seen.size).hex() == seen.root
        assert seen.size == len(leaves) == sum(sizes)
        if seen.size >= 256:
            assert self.read_hashes(folder, 1, seen.size) == [stored[8, i] for i in range(seen.size >> 8)]

    def test_layout(self, tmp_path: Path) -> None:
        with open_log(tmp_path) as log:
            log.append(batch(0, 10))
            log.append(batch(10, 250))
            names = {p.relative_to(tmp_path).as_posix() for p in (tmp_path / "tile").rglob("*") if p.is_file()}
            assert names == {
                "tile/0/000", "tile/0/001.p/4", "tile/1/000.p/1", "tile/entries/000", "tile/entries/001.p/4",
            }  # fmt: skip
            bundle = (tmp_path / "tile/entries/001.p/4").read_bytes()
            assert bundle[:34] == b"\x00\x20" + bytes.fromhex(log.entry(256).data)
            assert len(bundle) == 4 * 34

    @pytest.mark.parametrize(
        ("index", "path"), [(0, "000"), (999, "999"), (1000, "x001/000"), (1234067, "x001/x234/067")]
    )
    def test_numbers(self, index: int, path: str) -> None:
        assert tiles.number_path(index) == path

    def test_lost_and_half_written_files_are_repaired_on_open(self, tmp_path: Path) -> None:
        with open_log(tmp_path) as log:
            log.append(batch(0, 300))
        before = {p: p.read_bytes() for p in (tmp_path / "tile").rglob("*") if p.is_file()}
        note = (tmp_path / "checkpoint").read_text()
        (tmp_path / "tile/0/000").unlink()
        (tmp_path / "tile/entries/001.p/44").write_bytes(b"half")
        (tmp_path / "checkpoint").unlink()
        open_log(tmp_path).close()
        assert {p: p.read_bytes() for p in (tmp_path / "tile").rglob("*") if p.is_file()} == before
        assert (tmp_path / "checkpoint").read_text() == note


class TestTamper:
    def change(self, folder: Path, *statements: str) -> None:
        db = sqlite3.connect(folder / "ledger.db")
        for statement in statements:
            db.execute(statement)
        db.commit()
        db.close()

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        with open_log(tmp_path) as log:
            log.append(batch(0, 20))
        return tmp_path

    def test_a_changed_payload_is_noticed_when_read(self, folder: Path) -> None:
        self.change(folder, "UPDATE entries SET payload = replace(payload, '5', '6') WHERE idx = 5")
        with open_log(folder) as log:
            assert log.entry(4).index == 4
            with pytest.raises(VerificationError, match="entry 5"):
                log.entry(5)

    def test_a_changed_leaf_is_noticed_by_a_check(self, folder: Path) -> None:
        self.change(
            folder, "UPDATE entries SET erased = 'x', salt = NULL, payload = NULL, data = randomblob(32) WHERE idx = 5"
        )
        with open_log(folder) as log, pytest.raises(VerificationError, match="do not give its root"):
            log.check()

    def test_a_shortened_log_is_refused(self, folder: Path) -> None:
        self.change(folder, "DELETE FROM entries WHERE idx > 17", "DELETE FROM hashes WHERE level = 0 AND idx > 17")
        with pytest.raises(VerificationError, match="does not extend its last checkpoint"):
            open_log(folder)

    def test_a_rewritten_history_is_refused(self, folder: Path) -> None:
        self.change(folder, "UPDATE hashes SET hash = randomblob(32) WHERE level = 4")
        with pytest.raises(VerificationError, match="does not extend its last checkpoint"):
            open_log(folder)

    def test_another_key_is_refused_and_the_lock_let_go(self, folder: Path) -> None:
        with pytest.raises(VerificationError):
            open_log(folder, SigningKey.generate())
        open_log(folder).close()

    def test_a_file_that_is_no_database(self, tmp_path: Path) -> None:
        (tmp_path / "ledger.db").write_bytes(b"not a database, but long enough to be read as one" * 9)
        with pytest.raises(ConfigError, match="database"):
            open_log(tmp_path)


def test_a_checkpoint_is_on_disk_before_it_takes_the_place_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger(tmp_path, KEY, NAME) as log:
        old, synced, fsync = log.checkpoint(), [], os.fsync

        def watched(descriptor: int) -> None:
            fsync(descriptor)
            synced.append((os.fstat(descriptor).st_size, (tmp_path / "checkpoint").read_text()))

        monkeypatch.setattr(os, "fsync", watched)
        log.append([("a:0", {"n": 1})])
        assert synced == [(len(log.checkpoint().encode()), old)]


@pytest.mark.parametrize("left", [b"", b"\0" * 200, b"\xff"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, left: bytes) -> None:
    Ledger(tmp_path, KEY, NAME).close()
    (tmp_path / "checkpoint").write_bytes(left)
    with pytest.raises(VerificationError, match="last checkpoint does not hold") as fault:
        Ledger(tmp_path, KEY, NAME)
    assert fault.value.where == str(tmp_path / "checkpoint")


def test_a_restored_backup_is_noticed_by_who_pinned_a_later_checkpoint(tmp_path: Path) -> None:
    with open_log(tmp_path / "log") as log:
        log.append(batch(0, 7))
    shutil.copytree(tmp_path / "log", tmp_path / "backup")
    with open_log(tmp_path / "log") as log:
        log.append(batch(7, 7))
        pin = advance(None, log.checkpoint(), [], NAME, KEY.public)
    with open_log(tmp_path / "backup") as log:
        with pytest.raises(VerificationError, match="shrank from 14 to 7"):
            advance(pin, log.checkpoint(), [], NAME, KEY.public)
        log.append([(f"de-1:{i}", {}) for i in range(20)])
        with pytest.raises(VerificationError, match="does not extend"):
            advance(pin, log.checkpoint(), log.consistency(14), NAME, KEY.public)


def test_a_second_writer_is_refused_by_name_of_the_first(tmp_path: Path) -> None:
    with open_log(tmp_path), pytest.raises(ConflictError, match=f"process id {os.getpid()}"):
        open_log(tmp_path)
    again = open_log(tmp_path)
    again.close()
    again.close()
    open_log(tmp_path).close()


CHILD = """
import sys
from consortium.keys.signing import SigningKey
from consortium.ledger.log import Ledger
log = Ledger(sys.argv[1], SigningKey.load(sys.argv[2]), sys.argv[3])
while True:
    start = log.size
    indices = log.append([(f"x:{i}", {"n": i}) for i in range(start, start + 37)])
    print(log.size, log.root, flush=True)
"""


@pytest.mark.parametrize("delay_s", [0.0, 0.013, 0.031])
def test_killed_in_mid_append_the_log_extends_what_it_had_said(tmp_path: Path, delay_s: float) -> None:
    key_path, folder = tmp_path / "log.key", tmp_path / "log"
    KEY.save(key_path)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(key_path), NAME], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    said = [child.stdout.readline() for _ in range(5)]
    deadline = time.monotonic() + delay_s
    while time.monotonic() < deadline:
        said.append(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    said += child.stdout.readlines()
    child.wait()
    size_text, root = next(line for line in reversed(said) if line.endswith("\n")).split()
    with open_log(folder) as log:
        assert log.size >= int(size_text)
        assert log.size % 37 == 0
        verify_consistency(int(size_text), root, log.size, log.root, log.consistency(int(size_text)))
        assert not list(tiles.missing(folder, log.size))
        log.check()
        log.append(batch(0, 3))
        seen = parse_checkpoint((folder / "checkpoint").read_text(), NAME, KEY.public)
        assert (seen.size, seen.root) == (log.size, log.root)


def test_the_checkpoint_is_a_c2sp_checkpoint(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append(batch(0, 3))
        lines = log.checkpoint().split("\n")
        assert lines[:3] == [NAME, "3", base64.b64encode(bytes.fromhex(log.root)).decode()]
        assert lines[3] == ""
        assert lines[4].startswith(f"— {NAME} ")
