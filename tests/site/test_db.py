"""The site's database as several programs, and several parts of one, use it side by side."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from consortium.site.db import SiteDb

OTHER = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT * FROM meta').fetchall()"


def test_a_second_database_in_a_process_takes_no_lock_from_the_first(tmp_path: Path) -> None:
    first, second = SiteDb(tmp_path), SiteDb(tmp_path)
    second.close()
    first.set_meta(lease_ms="1")
    log = tmp_path / "site.db-wal"
    was = log.stat().st_ino
    subprocess.run([sys.executable, "-c", OTHER, str(first.path)], check=True)  # it opens, reads and closes
    assert log.stat().st_ino == was, "the other program took itself for the last and deleted the log"
    first.set_meta(lease_ms="2")
    assert SiteDb(tmp_path).meta("lease_ms") == "2"
    first.close()
