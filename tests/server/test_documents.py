"""The folder of signed documents: what lies there besides, what does not hold, and a restart meanwhile."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consortium.errors import ConfigError, VerificationError
from consortium.keys.documents import folder_stamp
from consortium.server import loop
from consortium.server.core import Core
from consortium.server.federation import FederationFiles, kept_documents, load
from consortium.server.settings import ServerSettings


def folder_of(fed: Any) -> Path:
    return Path(fed.settings["documents_dir"])


def test_what_editors_put_beside_the_documents_is_none(parts: Any) -> None:
    core, fed = parts
    before = folder_stamp(str(folder_of(fed)))
    os.symlink("anna@host.4711:1795000000", folder_of(fed) / ".#policy-de.json")
    (folder_of(fed) / ".draft.json").write_text("{half")
    assert folder_stamp(str(folder_of(fed))) == before
    assert load(str(folder_of(fed)), core.trust, core.clock.now_ms()).partners == core.federation.partners


@pytest.mark.parametrize("how", ["dangling", "folder", "bytes"])
def test_a_document_that_cannot_be_read_is_named_and_the_last_good_ones_stay_in_force(
    parts: Any, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    core, fed = parts
    path = folder_of(fed) / "policy-de.json"
    path.unlink()
    if how == "dangling":
        os.symlink("nowhere", path)
    elif how == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ConfigError, match=r"policy-de\.json"):
        load(str(folder_of(fed)), core.trust, core.clock.now_ms())
    before = core.federation
    loop._refresh_documents(core)
    assert core.federation is before
    assert "policy-de.json" in caplog.text


def restart(core: Core, fed: Any) -> Core:
    core.close()
    return Core.open(ServerSettings.load(fed.config))


def test_a_server_that_starts_beside_a_half_written_document_keeps_the_last_good_ones(
    parts: Any, caplog: pytest.LogCaptureFixture
) -> None:
    core, fed = parts
    path = folder_of(fed) / "policy-de.json"
    whole = path.read_text()
    path.write_text(whole[:300])
    again = restart(core, fed)
    try:
        assert again.federation.partners == core.federation.partners
        assert "policy-de.json" in caplog.text
        assert sorted(d.file for d in again.federation.documents) == sorted(d.file for d in core.federation.documents)
        path.write_text(whole)
        assert again.files.refresh(again.clock.now_ms())
    finally:
        again.close()


def test_a_document_that_was_taken_away_does_not_come_back_at_a_restart(parts: Any) -> None:
    core, fed = parts
    (folder_of(fed) / "policy-de.json").unlink()
    loop._refresh_documents(core)
    assert "de" not in core.federation.partners
    (folder_of(fed) / "policy-uy.json").write_text("{half")
    again = restart(core, fed)
    try:
        assert again.federation.partners == ("fr", "uy")
    finally:
        again.close()


def test_what_the_state_kept_must_hold_itself_and_a_missing_folder_is_no_broken_file(parts: Any) -> None:
    core, fed = parts
    folder, now_ms = folder_of(fed), core.clock.now_ms()
    with core.db.read() as connection:
        kept = kept_documents(connection)
    (folder / "policy-uy.json").write_text("{half")
    assert FederationFiles(str(folder), core.trust, now_ms, kept).current.partners == ("de", "fr", "uy")
    with pytest.raises(ConfigError, match=r"policy-uy\.json"):
        FederationFiles(str(folder), core.trust, now_ms)
    forged = [replace(kept[0], text=kept[0].text + " "), *kept[1:]]
    with pytest.raises(VerificationError, match=kept[0].partner):
        FederationFiles(str(folder), core.trust, now_ms, forged)
    with pytest.raises(ConfigError, match="no directory"):
        FederationFiles(str(folder / "nowhere"), core.trust, now_ms, kept)
