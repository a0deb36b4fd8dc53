"""An agent against a server that speaks the real protocol; Ray is away, clocks are set by hand."""

from __future__ import annotations

from consortium.site.agent.loop import Agent
from consortium.site.agent.server import ServerLine
from tests.site.world import Script, World, consortium_server, script_for


class Stage:
    def __init__(self, world: World) -> None:
        self.world = world
        self.script: Script = script_for(world)
        self.serving = consortium_server(self.script).__enter__()
        self.settings = world.settings(gateway_url=self.serving.url)
        self.now_ms = 1_750_000_000_000
        self.agent = self.start()

    def start(self) -> Agent:
        """A new agent process on the same database."""
        agent = Agent(self.settings)
        agent.clock.now_ms = lambda: self.now_ms  # type: ignore[method-assign]
        agent.runner.now_ms = lambda: self.now_ms
        agent.runner.unhealthy = ""
        self.line = ServerLine(self.settings)
        return agent

    def poll(self) -> None:
        self.agent.poll_once(self.line)
