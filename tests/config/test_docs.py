"""docs/configuration.md names every key there is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from consortium.config import ServerTuning, SiteConfig
from consortium.config.kinds import GROUPS
from consortium.config.overrides import allowed_keys
from consortium.domain.data import ArtifactClass
from consortium.domain.job import JobKind
from consortium.policy import PolicyRules

TEXT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
KEYS = {
    "policy": [field.name for field in dataclasses.fields(PolicyRules)],
    "server": [field.name for field in dataclasses.fields(ServerTuning)],
    "site": [field.name for field in dataclasses.fields(SiteConfig) if field.name != "flavor"],
    **{kind.value: [k for k in allowed_keys(kind) if k not in GROUPS[kind]] for kind in JobKind},
}


@pytest.mark.parametrize("what", KEYS)
def test_every_key_is_documented(what: str) -> None:
    code = set(re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", TEXT, flags=re.DOTALL | re.MULTILINE)))
    assert [key for key in KEYS[what] if key not in code and f"{key}.SITE" not in code] == []


def test_every_group_and_artifact_class_is_documented() -> None:
    assert all(f"{group}/" in TEXT for groups in GROUPS.values() for group in groups)
    assert " ".join(name.value for name in ArtifactClass) in TEXT
