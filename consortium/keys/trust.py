"""Whose keys one believes: pinned by each partner, carried in every report, compared by fingerprint."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from consortium.domain.codec import from_json, to_json
from consortium.domain.ids import CONSORTIUM, SERVER
from consortium.errors import ConfigError, UsageError, VerificationError
from consortium.keys.signing import fingerprint, key_label
from consortium.keys.strict import NotStrictError, parse_object, read_bounded

MAX_BYTES = 16 << 20
"""What a file of trusted keys may take: 50,000 sites."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteKeys:
    """A site's public keys, base64 of the raw 32 bytes."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    signing: str
    sealing: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Public keys of the log, the server, the partners (root keys) and the sites."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    log_name: str
    """The log's origin line in its checkpoints."""
    log_key: str
    server_key: str
    partners: dict[str, str]
    sites: dict[str, SiteKeys]

    @classmethod
    def load(cls, path: str | Path) -> Trust:
        """Read the file; raises ConfigError naming it and the offending key."""
        try:
            return cls.parse(parse_object(read_bounded(path, MAX_BYTES)), where=str(path))
        except OSError as fault:
            raise ConfigError(f"cannot read the trusted keys: {fault.strerror}", where=str(path)) from fault
        except NotStrictError as fault:
            raise ConfigError(f"not a file of trusted keys: {fault}", where=fault.at(str(path))) from fault

    @classmethod
    def parse(cls, data: Any, *, where: str) -> Trust:
        """Return trust from its JSON; raises ConfigError."""
        try:
            return from_json(cls, data, where=where)
        except UsageError as fault:
            raise ConfigError(fault.what, where=where) from fault

    def save(self, path: str | Path) -> None:
        """Write the file durably and whole or not at all."""
        target = Path(path)
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        with draft.open("w", encoding="utf-8") as out:
            out.write(json.dumps(to_json(self), indent=2, sort_keys=True) + "\n")
            out.flush()
            os.fsync(out.fileno())
        draft.replace(target)

    def origin_key(self, origin: str) -> str:
        """Return the key that signs the records of `origin` (a site id, or `server`)."""
        if origin == SERVER:
            return self.server_key
        if origin not in self.sites:
            raise VerificationError(f"no trusted key for the records of {origin!r}")
        return self.sites[origin].signing

    def site_key(self, site: str) -> str:
        """Return the key that signs what a site says in rounds and at borders; `server` is no site."""
        if site == SERVER or site not in self.sites:
            raise VerificationError(f"no trusted key for site {site!r}")
        return self.sites[site].signing

    def partner_key(self, partner: str) -> str:
        """Return a partner's root key; `consortium` is the server's."""
        if partner == CONSORTIUM:
            return self.server_key
        if partner not in self.partners:
            known = ", ".join(sorted(self.partners))
            raise VerificationError(f"no trusted key for partner {partner!r}", fix=f"known partners: {known}")
        return self.partners[partner]

    def sealing_keys(self, sites: tuple[str, ...]) -> dict[str, str]:
        """Return the sealing keys of `sites`; raises VerificationError naming one that is unknown."""
        for site in sites:
            if site not in self.sites:
                raise VerificationError(f"no trusted sealing key for site {site!r}")
        return {site: self.sites[site].sealing for site in sites}

    def fingerprints(self) -> dict[str, str]:
        """Return the fingerprint of every signing key, for people to compare over another channel."""
        return {name: fingerprint(key) for name, key in self.signing_keys().items()}

    def labels(self) -> dict[str, str]:
        """Return the label of every signing key, as it stands in reports."""
        return {name: key_label(key) for name, key in self.signing_keys().items()}

    def signing_keys(self) -> dict[str, str]:
        """Return every signing key by whose it is, such as `site fr-1`."""
        keys = {"log": self.log_key, "server": self.server_key}
        keys |= {f"partner {name}": key for name, key in self.partners.items()}
        keys |= {f"site {name}": pair.signing for name, pair in self.sites.items()}
        return dict(sorted(keys.items()))
