"""Compose a job from `configs/job/KIND.yaml`, its groups and overrides. Thread-safe, cached until a file changes."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

from consortium.config import dirs, marks
from consortium.config.build import build
from consortium.config.kinds import GROUPS, ComposedJob, JobKeys, build_params, job_kind
from consortium.config.marks import KeyPath, Marked
from consortium.config.overrides import JobOverride, parse_overrides
from consortium.domain.job import JobKind
from consortium.errors import ConfigError

_lock = threading.Lock()
"""Hydra keeps its state in one global object, so one thread composes at a time."""
_cache: dict[tuple[Any, ...], dict[str, Any]] = {}
_CACHED = 512
_KEYS = frozenset(field.name for field in dataclasses.fields(JobKeys))


def compose_job(
    kind: str,
    overrides: list[str] | tuple[str, ...] = (),
    configs: Path | None = None,
) -> ComposedJob:
    """Return the job of `kind` with `overrides` (`key=value`, Hydra's grammar) applied.

    Whether account, sites and flavors exist is the server's to say.
    Raises ConfigError naming the file and line or the override at fault.
    """
    root = (configs or dirs.default_dirs().configs).resolve()
    name = job_kind(kind)
    given = parse_overrides(name, tuple(overrides), root)
    sources = _sources(name, given, root)
    plain = [o for o in given if not o.choice and (root / o.key).is_dir()]
    data = compose(root, f"job/{name.value}", tuple(o.text for o in given if o not in plain))
    for override in plain:  # `model` of an evaluate job: Hydra would take it for a choice of the group of that name
        data[override.key] = override.value
    keys = {key: value for key, value in data.items() if key in _KEYS and (key != "model" or name is JobKind.EVALUATE)}
    params = {key: value for key, value in data.items() if key not in keys}

    def locate(*paths: KeyPath) -> str:
        overridden = (_override(path, given) for path in paths)
        return next((where for where in overridden if where), "") or _in_files(paths[0], sources)

    common = build(JobKeys, keys, locate)
    checked = build_params(name, params, locate, also=_KEYS)
    fields = {key: getattr(common, key) for key in sorted(_KEYS)} | {"flavors": common.flavor_names}
    return ComposedJob(kind=name, params=checked, throughput=common.throughput, **fields)


def compose(root: Path, config_name: str, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Compose one config under `root` with Hydra into plain data. Raises ConfigError.

    The files must have passed `marks.read` and the overrides `parse_overrides` before.
    """
    key = (root, config_name, overrides, dirs.fingerprint(root))
    with _lock:
        if key not in _cache:
            if len(_cache) >= _CACHED:
                _cache.clear()
            _cache[key] = _compose(root, config_name, overrides)
        data: dict[str, Any] = marks.copy(_cache[key])
        return data


def _compose(root: Path, config_name: str, overrides: tuple[str, ...]) -> dict[str, Any]:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(config_dir=str(root), version_base="1.3"):
            composed = hydra_compose(config_name=config_name, overrides=list(overrides))
        data = OmegaConf.to_container(composed, resolve=False)
    except (HydraException, OmegaConfBaseException) as fault:
        problem = str(fault.__cause__ or fault).strip().splitlines()[0][:200]
        raise ConfigError(
            f"cannot compose {config_name}: {problem}", where=f"{root.name}/{config_name}.yaml"
        ) from fault
    if not isinstance(data, dict):
        raise ConfigError("not a mapping of keys to values", where=f"{root.name}/{config_name}.yaml")
    return {str(key): value for key, value in data.items()}


def _sources(kind: JobKind, given: tuple[JobOverride, ...], root: Path) -> list[tuple[str, Marked]]:
    """Read every file the composition draws on: (key of params it lands under, its text with marks)."""
    job = dirs.read(root, f"job/{kind.value}.yaml")
    chosen = _defaults(job, kind)
    chosen |= {o.key: str(o.value) for o in given if o.choice}
    sources = [("", job)]
    for group, choice in sorted(chosen.items()):
        chosen_file = dirs.read(root, f"{group}/{choice}.yaml")
        sources.append((GROUPS[kind][group], chosen_file))
        for entry in chosen_file.data.get("defaults", []):  # what it draws on in its own group
            if isinstance(entry, str) and entry != "_self_":
                sources.append((GROUPS[kind][group], dirs.read(root, f"{group}/{entry}.yaml")))
    return sources


def _defaults(job: Marked, kind: JobKind) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for index, entry in enumerate(job.data.get("defaults", [])):
        if entry == "_self_":
            continue
        group, choice = next(iter(entry.items())) if isinstance(entry, dict) and len(entry) == 1 else ("", None)
        group = str(group).removeprefix("/")
        if group not in GROUPS[kind] or not isinstance(choice, str):
            raise ConfigError(
                f"a {kind.value} job's defaults pick from {', '.join(GROUPS[kind]) or 'no group'}, not {entry!r}",
                where=job.where(("defaults", index)),
            )
        chosen[group] = choice
    return chosen


def _override(path: KeyPath, given: tuple[JobOverride, ...]) -> str:
    """Return the override that set a value last; empty where none did."""
    dotted = ".".join(str(step) for step in path)
    for override in reversed(given):
        if not override.choice and (dotted == override.key or dotted.startswith(override.key + ".")):
            return override.where
    return ""


def _in_files(path: KeyPath, sources: list[tuple[str, Marked]]) -> str:
    best: tuple[int, str] | None = None
    for prefix, marked in sources:
        inner = path[1:] if prefix and path[:1] == (prefix,) else path
        if prefix and path[:1] != (prefix,):
            continue
        depth = max(n for n in range(len(inner) + 1) if inner[:n] in marked.lines)
        rank = depth + (1 if prefix else 0)
        if best is None or rank > best[0]:
            best = (rank, marked.where(inner))
    return best[1] if best else sources[0][1].file
