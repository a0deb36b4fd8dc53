"""Compose a scenario from `configs/scenario/NAME.yaml`, its variant and overrides of its keys."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

from consortium.config import dirs
from consortium.config.build import build, unknown
from consortium.config.compose import compose
from consortium.config.marks import KeyPath, Marked
from consortium.config.overrides import JobOverride, accept
from consortium.config.scenario import Scenario
from consortium.errors import ConfigError
from consortium.scheduler.types import Settings

GROUP = "scenario"
VARIANT = "variant"


def scenario_names(configs: Path | None = None) -> tuple[str, ...]:
    """Return the scenarios there are, sorted."""
    root = configs or dirs.default_dirs().configs
    return tuple(path.stem for path in sorted((root / GROUP).glob("*.yaml")))


def load_scenario(name: str, overrides: list[str] | tuple[str, ...] = (), configs: Path | None = None) -> Scenario:
    """Return the scenario `name` with `overrides` (`key=value`, Hydra's grammar; `variant=` picks a variant) applied.

    Raises ConfigError naming the file and line or the override at fault.
    """
    root = (configs or dirs.default_dirs().configs).resolve()
    names = scenario_names(root)
    if name not in names:
        raise unknown("scenario", name, names, f"{root.name}/{GROUP}/")
    marked = dirs.read(root, f"{GROUP}/{name}.yaml")
    variant = _default_variant(marked)
    choices = {VARIANT: _variants(root)} if variant else {}
    known = sorted({*_leaves(Scenario, marked.data, ""), *choices} - {"name", *({VARIANT} - set(choices))})
    given = accept("scenario", tuple(overrides), known, choices, example="cycle_s=60")
    variant = next((str(o.value) for o in reversed(given) if o.choice), variant)
    sources = [marked, *([dirs.read(root, f"{GROUP}/{VARIANT}/{variant}.yaml")] if variant else [])]
    picked = (f"{GROUP}/{VARIANT}@{VARIANT}={variant}",) if variant else ()
    data = {"name": name, **compose(root, f"{GROUP}/{name}", picked)}
    for override in given:
        if not override.choice:
            _set(data, override)

    def locate(*paths: KeyPath) -> str:
        overridden = (_override(path, given) for path in paths)
        return next((where for where in overridden if where), "") or _in_files(paths[0], sources)

    return build(Scenario, data, locate)


def _variants(root: Path) -> list[str]:
    return [path.stem for path in sorted((root / GROUP / VARIANT).glob("*.yaml"))]


def _default_variant(marked: Marked) -> str:
    """The variant that the file's defaults pick; empty where it has none."""
    found = ""
    for index, entry in enumerate(marked.data.get("defaults", [])):
        if isinstance(entry, dict) and list(entry) == [VARIANT] and isinstance(entry[VARIANT], str):
            found = entry[VARIANT]
        elif entry != "_self_":
            raise ConfigError(
                f"a scenario's defaults pick a {VARIANT}, not {entry!r}", where=marked.where(("defaults", index))
            )
    return found


def _leaves(kind: Any, data: Any, prefix: str) -> list[str]:
    """The dotted keys below `prefix` that an override may set: what the schema names, over the entries that exist."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(kind) if option is not types.NoneType]
        return _leaves(options[0], data, prefix) if data is not None or len(options) > 1 else []
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        entries = data if isinstance(data, dict) else {}
        return [
            leaf
            for field in dataclasses.fields(kind)
            for leaf in _leaves(hints[field.name], entries.get(field.name), f"{prefix}{field.name}.")
        ]
    if prefix == "settings.":
        return [prefix + field.name for field in dataclasses.fields(Settings)]
    if typing.get_origin(kind) is dict:
        inner = typing.get_args(kind)[1]
        entries = data if isinstance(data, dict) else {}
        return [leaf for key in sorted(entries) for leaf in _leaves(inner, entries[key], f"{prefix}{key}.")]
    return [prefix.rstrip(".")]


def _set(data: dict[str, Any], override: JobOverride) -> None:
    *parents, last = override.key.split(".")
    for step in parents:
        data = data.setdefault(step, {})
    data[last] = override.value


def _override(path: KeyPath, given: tuple[JobOverride, ...]) -> str:
    """Return the override that set a value, or one below it, last; empty where none did."""
    dotted = ".".join(str(step) for step in path)
    for override in reversed(given):
        if override.key == dotted or dotted.startswith(override.key + ".") or override.key.startswith(dotted + "."):
            return override.where
    return ""


def _in_files(path: KeyPath, sources: list[Marked]) -> str:
    return next((source for source in sources if path[:1] in source.lines), sources[0]).where(path)
