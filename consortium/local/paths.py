"""Where things lie in the directory of an embedded federation, and which federation is the current one."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consortium.domain.ids import is_name
from consortium.errors import ConfigError, NotFoundError, UsageError
from consortium.keys.strict import NotStrictError, parse_object, read_bounded

_MAX_BYTES = 64 << 20
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def home() -> Path:
    """Return `$CONSORTIUM_HOME`, by default `~/.local/state/consortium`: all federations of this user.

    Raises ConfigError where that is no path.
    """
    named = os.environ.get("CONSORTIUM_HOME")
    try:
        return Path(named).expanduser().resolve() if named else Path.home() / ".local" / "state" / "consortium"
    except (OSError, RuntimeError, ValueError) as fault:  # nobody has that home folder; links that lead in a circle
        raise unusable(fault) from fault


def make_home() -> Path:
    """Return `home()` after making it and writing to it. Raises ConfigError where that cannot be done."""
    folder = home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as fault:
        raise unusable(fault) from fault


def unusable(fault: Exception) -> ConfigError:
    """Return the error for a home that cannot be read or written."""
    named = os.environ.get("CONSORTIUM_HOME")
    what = f"the folder of federations cannot be used: {getattr(fault, 'strerror', '') or fault}"
    file = getattr(fault, "filename", None)
    fix = "set $CONSORTIUM_HOME to a folder that you may write to"
    return ConfigError(
        f"{what}: {file}" if file else what,
        where=f"$CONSORTIUM_HOME={named}" if named else "~/.local/state/consortium",
        fix=f"make room on its disk, or {fix}" if getattr(fault, "errno", 0) in _NO_ROOM else fix,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientFile:
    """What the command line knows of a federation on this machine: `client.json`."""

    server_url: str
    token_paths: dict[str, str]
    """By person, as `key_paths` and `roles`."""
    key_paths: dict[str, str]
    roles: dict[str, list[str]]
    default_person: str

    @classmethod
    def load(cls, path: Path) -> ClientFile:
        """Read it. Raises NotFoundError or ConfigError."""
        from consortium.domain.codec import from_json

        try:
            return from_json(cls, read_json(path), where=str(path))
        except UsageError as fault:
            raise ConfigError(
                f"not the client file of a federation: {fault.what.removeprefix('not a valid ClientFile: ')}",
                where=fault.where,
                fix="start a federation anew: `consortium up --name NAME` writes one",
            ) from fault


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationDir:
    """The directory of one embedded federation. Nothing secret lies in a file that others may read."""

    root: Path

    @classmethod
    def named(cls, name: str) -> FederationDir:
        """Return the directory of federation `name` below `home()`; it need not exist. Raises UsageError."""
        if not is_name(name):
            raise UsageError(f"federation name {name!r}: lower-case letters, digits, '.', '_' and '-' only")
        return cls(root=home() / "federations" / name)

    @classmethod
    def current(cls) -> FederationDir:
        """Return the federation that was started last. Raises NotFoundError where none was."""
        link = home() / "current"
        if not link.exists():
            raise NotFoundError("there is no embedded federation yet", where=str(home()), fix="run: consortium up")
        return cls(root=link.resolve())

    def make_current(self) -> None:
        """Point the link `current` here, atomically."""
        draft = home() / f".current.{os.getpid()}"
        draft.unlink(missing_ok=True)
        draft.symlink_to(self.root)
        draft.replace(home() / "current")

    @property
    def name(self) -> str:
        """The federation's name: that of its directory."""
        return self.root.name

    @property
    def federation_file(self) -> Path:
        """What runs where; no secrets."""
        return self.root / "federation.json"

    @property
    def client_file(self) -> Path:
        """What the command line reads: server, people, paths of their tokens and keys."""
        return self.root / "client.json"

    @property
    def trust_file(self) -> Path:
        """Public keys of everybody."""
        return self.root / "trust.json"

    @property
    def documents(self) -> Path:
        """Signed documents of all partners, as the server reads them."""
        return self.root / "documents"

    @property
    def reports(self) -> Path:
        """Contribution reports that the demo writes."""
        return self.root / "reports"

    @property
    def server(self) -> Path:
        """The server's own directory."""
        return self.root / "server"

    @property
    def status_file(self) -> Path:
        """The supervisor's view of its children, rewritten at every change."""
        return self.root / "run" / "status.json"

    @property
    def sessions_file(self) -> Path:
        """Every child ever started since the last clean stop: pid and creation time, to find leftovers."""
        return self.root / "run" / "sessions.json"

    def site(self, site: str) -> Path:
        """Return the directory of a site."""
        return self.root / "sites" / site

    def person(self, person: str, suffix: str) -> Path:
        """Return the file of a person (`fr/amelie`): `.key` or `.token`."""
        return self.root / "people" / (person.replace("/", "_") + suffix)

    def partner_key(self, partner: str) -> Path:
        """Return a partner's root key file."""
        return self.root / "partners" / f"{partner}.key"

    def log(self, child: str) -> Path:
        """Return the log file of a child process."""
        return self.root / "logs" / f"{child}.log"

    def federation(self) -> dict[str, Any]:
        """Read `federation.json`. Raises NotFoundError or ConfigError."""
        return read_json(self.federation_file)

    def client(self) -> dict[str, Any]:
        """Read `client.json`. Raises NotFoundError or ConfigError."""
        return read_json(self.client_file)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises NotFoundError where it is missing, ConfigError where it is not one."""
    try:
        return parse_object(read_bounded(path, _MAX_BYTES))
    except FileNotFoundError as fault:
        raise NotFoundError("the file does not exist", where=str(path), fix="run: consortium up") from fault
    except OSError as fault:
        raise ConfigError(f"cannot read the file: {fault.strerror}", where=str(path)) from fault
    except NotStrictError as fault:
        raise ConfigError(str(fault), where=fault.at(str(path))) from fault


def write_file(path: Path, text: str, mode: int = 0o600) -> None:
    """Write a file whole or not at all, with `mode` from its first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(path)


def write_json(path: Path, data: Any, mode: int = 0o600) -> None:
    """Write a JSON file whole or not at all."""
    write_file(path, json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n", mode)
