"""`python -m consortium.site.agent --config FILE [--repin]`."""

from __future__ import annotations

import logging
import signal
import sys

from consortium.keys.trust import Trust
from consortium.site.agent.loop import Agent
from consortium.site.db import SiteDb
from consortium.site.process import arguments, main, only_instance, wait_for_room
from consortium.site.settings import SiteSettings
from consortium.site.watch import LogWatch

log = logging.getLogger("consortium.site.agent")


def run() -> None:
    """Run the agent until SIGTERM or SIGINT; with `--repin`, end an alarm and exit."""
    chosen = arguments("agent", repin=True)
    settings = SiteSettings.load(chosen.config)
    if chosen.repin:
        stood = LogWatch(SiteDb(settings.home), Trust.load(settings.trust_path)).repin()
        sys.stderr.write(f"ended: {stood}\n" if stood else "there was no alarm; the next checkpoint is pinned anew\n")
        return
    _held = only_instance(settings, "agent")
    held = wait_for_room(settings.home)
    agent = Agent(settings)
    held.close()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: agent.stop())
    log.info("agent of %s: code %s…", settings.site.id, agent.code[:19])
    agent.run()


if __name__ == "__main__":
    main(run)
