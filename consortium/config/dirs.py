"""Where `configs/` and `clusters/` are, and reading files in them by their display path."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from consortium.config import marks
from consortium.config.build import nearest
from consortium.config.marks import Marked
from consortium.errors import ConfigError

VARIABLE = "CONSORTIUM_CONFIGS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dirs:
    """The two folders of configs."""

    configs: Path
    clusters: Path


def default_dirs() -> Dirs:
    """Return the folders below `$CONSORTIUM_CONFIGS`, else those beside the package in its checkout.

    Raises ConfigError where either is missing.
    """
    given = os.environ.get(VARIABLE)
    root = Path(given).expanduser() if given else Path(__file__).resolve().parents[2]
    for name in ("configs", "clusters"):
        if not (root / name).is_dir():
            raise ConfigError(
                f"there is no folder {name!r}",
                where=f"${VARIABLE}={given}" if given else "beside the installed package",
                fix=f"set ${VARIABLE} to a folder that holds configs/ and clusters/ (a checkout has both)",
            )
    return Dirs(configs=root / "configs", clusters=root / "clusters")


def display(root: Path, relative: str) -> str:
    """Return the path that messages and signed documents show: `configs/policy/fr.yaml`."""
    return f"{root.name}/{relative}"


def read(root: Path, relative: str) -> Marked:
    """Return the YAML file `relative` below `root`, cached until it changes. Raises ConfigError."""
    path = root / relative
    if not path.is_file():
        others = [f"{path.parent.name}/{p.name}" for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise ConfigError(
            "there is no such config file",
            where=display(root, relative),
            fix=nearest(f"{path.parent.name}/{path.name}", others),
        )
    stat = path.stat()
    return _read(path, display(root, relative), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=256)
def _read(path: Path, file: str, mtime_ns: int, size: int) -> Marked:
    return marks.read(path, file)


def fingerprint(root: Path) -> tuple[tuple[str, int, int], ...]:
    """Return what changes when any YAML file below `root` does."""
    return tuple(
        (str(path), stat.st_mtime_ns, stat.st_size) for path in sorted(root.rglob("*.yaml")) for stat in (path.stat(),)
    )
