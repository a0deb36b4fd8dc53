"""What is said where the server does not answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from consortium.local.lock import HomeLock
from consortium.local.ports import free_ports


def test_a_server_here_that_is_away_is_waited_for_where_a_supervisor_runs(tmp_path: Path, call: Callable) -> None:
    root = tmp_path / "federations" / "t"
    root.mkdir(parents=True)
    (tmp_path / "current").symlink_to(root)
    (root / "token").write_text("token")
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    known = {"server_url": url, "token_paths": {"fr/a": str(root / "token")}, "key_paths": {}, "roles": {"fr/a": []}}
    (root / "client.json").write_text(json.dumps({**known, "default_person": "fr/a"}))
    alone = call("jobs", home=tmp_path)
    assert alone.code == 6
    assert "fix:   start it with `consortium up`, or mend the server's address" in alone.err
    with HomeLock(tmp_path, root):
        kept = call("jobs", home=tmp_path)
    assert kept.code == 6
    assert f"where: {url}" in kept.err
    assert "fix:   try again in a moment: its supervisor starts it anew where it has ended" in kept.err
    assert f"what it says is in {root}/logs/server.log" in kept.err
