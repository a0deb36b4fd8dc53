"""A token that is renewed is shown and taken at once, by programs that go on running."""

from __future__ import annotations

from pathlib import Path

import pytest

from consortium.errors import AuthError
from consortium.site.agent.server import ServerLine
from consortium.site.gateway.core import Gateway
from tests.site.http import App, Serving
from tests.site.world import World


def test_gateway_and_agent_go_on_with_a_renewed_token(world: World) -> None:
    app = App()
    app.route("GET", "/v1/whoami")(lambda body, query: {})
    app.route("POST", "/v1/sites/fr-1/records")(lambda body, query: {"acked_seq": 0})
    with Serving(app) as server:
        settings = world.settings(server_url=server.url, gateway_url=server.url)
        file = Path(settings.token_path)
        gateway, line = Gateway(settings), ServerLine(settings)
        for token in ("first", "second", ""):
            file.write_text(f"{token}\n")
            gateway.call("GET", "/v1/whoami")
            line.send_records([])
            gateway.check_agent(f"Bearer {token or 'second'}")
        with pytest.raises(AuthError, match="not the token"):
            gateway.check_agent("Bearer first")
        file.unlink()
        gateway.call("GET", "/v1/whoami")
        line.close()
        gateway.close()
    shown = [heard.headers["Authorization"].removeprefix("Bearer ") for heard in app.heard]
    assert shown == ["first", "first", "second", "second", "second", "second", "second"], "an empty file is no token"
