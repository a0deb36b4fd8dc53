"""docs/configuration.md names every key there is."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from consortium.config import ServerTuning, SiteConfig, compose_job, default_dirs, validate_params
from consortium.config.kinds import GROUPS
from consortium.config.overrides import allowed_keys
from consortium.domain.data import ArtifactClass
from consortium.domain.job import JobKind
from consortium.errors import ConfigError
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


def test_every_choice_of_a_group_is_documented() -> None:
    folders = {group: default_dirs().configs / group for groups in GROUPS.values() for group in groups}
    choices = {f"{group}/{path.stem}" for group, folder in folders.items() for path in folder.glob("*.yaml")}
    assert [choice for choice in sorted(choices) if f"`{choice.partition('/')[2]}`" not in TEXT] == []


@pytest.mark.parametrize("name", ["guarded", "shared"])
def test_what_a_choice_of_outer_changes_is_documented(name: str) -> None:
    said = " ".join(TEXT.partition(f"`outer={name}` differs in ")[2].partition("| key |")[0].split())
    said = said.partition("`outer=")[0].replace("`", "")
    usual, chosen = (leaves(compose_job("pretrain", [f"outer={one}"]).params["outer"]) for one in ("diloco", name))
    changed = {key: value for key, value in chosen.items() if usual[key] != value}
    assert [key for key, value in changed.items() if f"{key.rpartition('.')[2]} {value}" not in said] == []


def leaves(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        found |= leaves(value, f"{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def bounds() -> list[tuple[str, str, float, float]]:
    """The rows of the tables of params whose bounds are two numbers: kind, key, lowest, highest."""
    rows = []
    for kind, rest in re.findall(
        r"^### `(clean|tokenize|pretrain|evaluate)`(.*?)(?=^##)", TEXT, re.DOTALL | re.MULTILINE
    ):
        for key, low, high in re.findall(
            r"^\| `([a-z_.]+)` \|.*?\| (-?[0-9][0-9,.]*) to ([0-9][0-9,.]*)[ ;|]", rest, re.MULTILINE
        ):
            rows.append((kind, key, float(low.replace(",", "")), float(high.replace(",", ""))))
    return rows


@pytest.mark.parametrize(("kind", "key", "low", "high"), bounds())
def test_documented_bounds_are_those_that_are_checked(kind: str, key: str, low: float, high: float) -> None:
    def check(value: float) -> None:
        params = compose_job(kind).params
        place: Any = params
        *parents, last = key.split(".")
        for step in parents:
            place = place[step]
        number = value if isinstance(place[last], float) else int(value)
        place[last] = [number] if isinstance(place[last], list) else number
        validate_params(kind, params)

    for value in (low - 1, high + 1):
        with pytest.raises(ConfigError, match=rf"{key.rpartition('.')[2]} must"):
            check(value)
