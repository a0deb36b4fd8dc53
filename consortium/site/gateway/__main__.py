"""`python -m consortium.site.gateway --config FILE`."""

from __future__ import annotations

import logging

from consortium.site.gateway.app import serve
from consortium.site.gateway.core import Gateway
from consortium.site.process import arguments, main, only_instance, wait_for_room
from consortium.site.settings import SiteSettings


def run() -> None:
    """Run the gateway until SIGTERM or SIGINT."""
    settings = SiteSettings.load(arguments("gateway").config)
    _held = only_instance(settings, "gateway")
    held = wait_for_room(settings.home)
    gateway = Gateway(settings)
    held.close()
    logging.getLogger("consortium.site.gateway").info("gateway of %s: %s", settings.site.id, settings.gateway_url)
    serve(gateway)


if __name__ == "__main__":
    main(run)
