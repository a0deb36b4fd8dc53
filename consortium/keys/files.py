"""Secret key files: mode 0600, never overwritten, never read where others could read them too."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from consortium.errors import ConfigError, ConflictError, NotFoundError


def write_secret(path: str | Path, data: bytes) -> None:
    """Create `path` with mode 0600, durably and whole or not at all.

    Raises ConflictError where it exists: an overwritten key would orphan everything it signed.
    """
    target = Path(path)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.link(draft, target)
    except FileExistsError as fault:
        raise ConflictError(
            "the key file exists already and is never overwritten",
            where=str(target),
            fix="use the key that is there, or move it away first",
        ) from fault
    finally:
        draft.unlink()


def read_secret(path: str | Path) -> bytes:
    """Read a key file. Raises NotFoundError where it is missing, ConfigError where others may read it too."""
    target = Path(path)
    try:
        mode = target.stat().st_mode
        if mode & 0o077:
            raise ConfigError(
                f"the key file can be read by others (mode {mode & 0o777:o})",
                where=str(target),
                fix=f"chmod 600 {target}, and make a new key if somebody may have read it",
            )
        return target.read_bytes()
    except FileNotFoundError as fault:
        raise NotFoundError("there is no key file", where=str(target), fix="make the key, or mend the path") from fault
    except OSError as fault:
        raise ConfigError(f"cannot read the key file: {fault.strerror}", where=str(target)) from fault
