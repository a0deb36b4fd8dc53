"""The site's eye on log and server: a rewritten history or a server out of the past is noticed at the next poll.

An alarm is durable. It ends when the partner's operator, having settled with the consortium what happened, runs
`python -m consortium.site.agent --config FILE --repin`.
"""

from __future__ import annotations

import json

from consortium.domain.codec import from_json, to_json
from consortium.domain.protocol import Pinned, PollResponse
from consortium.errors import VerificationError
from consortium.keys.trust import Trust
from consortium.ledger.proofs import advance
from consortium.site.db import SiteDb


class LogWatch:
    """Pins the last log checkpoint and the server's incarnation in `site.db`."""

    def __init__(self, db: SiteDb, trust: Trust) -> None:
        self.db = db
        self.trust = trust

    @property
    def pinned(self) -> Pinned | None:
        """The last verified checkpoint."""
        text = self.db.meta("pinned")
        return from_json(Pinned, json.loads(text), where="pinned checkpoint") if text else None

    @property
    def alarm(self) -> str:
        """Why the site takes no offers; empty where all is well."""
        return self.db.meta("alarm")

    def check(self, response: PollResponse) -> str:
        """Check a response against what is pinned; return the alarm, empty where the response holds."""
        if self.alarm:
            return self.alarm
        known = int(self.db.meta("incarnation", "0"))
        pinned = self.pinned
        try:
            if response.incarnation < known:
                raise VerificationError(f"the server's incarnation went back from {known} to {response.incarnation}")
            if response.checkpoint or pinned is not None:
                key, name = self.trust.log_key, self.trust.log_name
                pinned = advance(pinned, response.checkpoint, response.consistency, name, key)
        except VerificationError as fault:
            alarm = f"log rolled back: {fault.what}"
            self.db.set_meta(alarm=alarm)
            return alarm
        values = {"incarnation": str(response.incarnation)}
        if pinned is not None:
            values["pinned"] = json.dumps(to_json(pinned))
        if pinned != self.pinned or response.incarnation != known:
            self.db.set_meta(**values)
        return ""

    def repin(self) -> str:
        """Forget pin, incarnation and alarm, and return the alarm that stood. Epochs stay fenced."""
        stood = self.alarm
        self.db.set_meta(alarm="", pinned="", incarnation="0")
        return stood
