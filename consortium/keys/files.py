"""Secret key files: mode 0600, never overwritten, never read where others could read them too."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TypeVar

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from consortium.errors import ConfigError, ConflictError, NotFoundError

K = TypeVar("K", Ed25519PrivateKey, X25519PrivateKey)


def load_key(path: str | Path, kind: type[K], called: str) -> K:
    """Read a private key of `kind` from a PEM file. Raises NotFoundError, or ConfigError where it holds no such key."""
    try:
        key = serialization.load_pem_private_key(read_secret(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as fault:
        raise ConfigError(f"not a {called}, PEM", where=str(path)) from fault
    if not isinstance(key, kind):
        raise ConfigError(f"a key of another kind, not a {called}", where=str(path))
    return key


def save_key(path: str | Path, key: Ed25519PrivateKey | X25519PrivateKey) -> None:
    """Write a private key as PEM (PKCS 8) with mode 0600. Raises ConflictError where the file exists."""
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_secret(path, key.private_bytes(*private))


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
