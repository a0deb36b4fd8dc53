"""`python -m consortium.server --config FILE`: run the server until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import sys
import threading

import uvicorn

from consortium.errors import ConfigError, ConflictError, ConsortiumError
from consortium.server.app import make_app
from consortium.server.core import Core
from consortium.server.loop import Loop
from consortium.server.settings import ServerSettings
from consortium.server.tracking import TrackingWorker

log = logging.getLogger("consortium.server")


def main(arguments: list[str] | None = None) -> int:
    """Run the server; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m consortium.server", description="The consortium's server.")
    parser.add_argument("--config", required=True, metavar="FILE", help="settings (JSON)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("alembic", "httpx", "mlflow", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        settings = ServerSettings.load(options.config)
        listener = listen(settings.host, settings.port)
        with listener:
            serve(Core.open(settings), listener)
    except ConsortiumError as fault:
        sys.stderr.write(fault.render() + "\n")
        return fault.exit_code
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises ConfigError where the port is taken or may not be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError) as fault:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {getattr(fault, 'strerror', None) or fault}",
            where="host and port in the server's settings",
            fix="stop the other process on this port, or choose another port",
        ) from fault
    return listener


def serve(core: Core, listener: socket.socket) -> None:
    """Serve until a signal, then end cleanly: requests first, then the loop, then the state.

    Raises ConflictError where another server took the state over meanwhile.
    """
    config = uvicorn.Config(
        make_app(core), log_level="warning", access_log=False, timeout_graceful_shutdown=5, lifespan="off",
        timeout_keep_alive=30,
    )  # fmt: skip
    server, lost = uvicorn.Server(config), threading.Event()

    def taken_over() -> None:
        lost.set()
        server.should_exit = True

    loop, tracking = Loop(core, taken_over), TrackingWorker(core)
    # uvicorn ends on these signals and raises them again afterwards; a clean end is no death by signal.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    try:
        loop.start()
        tracking.start()
        log.info("listening on %s:%d, incarnation %d", *listener.getsockname()[:2], core.incarnation)
        server.run(sockets=[listener])
    finally:
        tracking.stop()
        loop.stop()
        core.close()
    if lost.is_set():
        raise ConflictError(
            "another server took this state over while the connection that held its lock was lost",
            where=core.db.engine.url.render_as_string(hide_password=True),
            fix="let that one go on, or stop it and start this one again",
        )


if __name__ == "__main__":
    sys.exit(main())
