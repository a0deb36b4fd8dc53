"""The digest of the code a site installed: a site runs a job only where the submitter signed the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

from consortium.errors import ConfigError


def code_digest(package_dir: str | Path, jobs_dir: str | Path) -> str:
    """Return `sha256:…` over the sorted relative paths and contents of all `*.py` below both folders."""
    whole = hashlib.sha256()
    for label, folder in (("consortium", Path(package_dir)), ("jobs", Path(jobs_dir))):
        files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*.py"))
        if not files:
            raise ConfigError("holds no Python files to run", where=str(folder), fix="install the programs there")
        for name, path in files:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            whole.update(f"{content}  {label}/{name}\n".encode())
    return "sha256:" + whole.hexdigest()
