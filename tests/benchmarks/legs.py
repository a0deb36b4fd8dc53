"""How many legs one Ray cluster carries: `python -m tests.benchmarks.legs [--json] [--most N] [--connect]`.

One real head, started as the embedded federation starts it. Legs go to it through the agent's own client, with the
environment that the agent gives them: 8, then 16, 32 and so on side by side, until one is not taken, or does not run in
time, or the cluster's memory passes a bound. The program only sleeps; with `--connect` it joins the cluster and holds
one simulated GPU with an actor, as the smallest real leg would. Memory is PSS: shared pages count once.

References: issue 37894 of Ray (version 2.5) says that the Jobs API is unstable past 30 running jobs.
"""

from __future__ import annotations

import secrets
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from consortium.errors import UnreachableError
from consortium.local import children
from consortium.local.keeper import Keeper
from consortium.local.paths import FederationDir
from consortium.local.ports import free_ports
from consortium.site.agent.runner import leg_environment
from consortium.site.ray_jobs import RayCluster, RayStatus
from tests.benchmarks.table import Row, arguments, row, show

SITE = "fr-1"
PORTS = (
    "ray_gcs", "ray_dashboard", "ray_agent_http", "ray_agent_grpc", "ray_metrics", "ray_runtime_env", "ray_client",
    "ray_autoscaler_metrics", "ray_dashboard_metrics",
)  # fmt: skip
SLEEPS = "import time\nprint('here', flush=True)\ntime.sleep(3600)\n"
CONNECTS = """
import time
import ray

ray.init(address="auto", logging_level="warning")

@ray.remote(num_cpus=0, resources={"sim_gpu": 1})
class Holder:
    def hold(self):
        return True

holder = Holder.remote()
ray.get(holder.hold.remote())
print("here", flush=True)
time.sleep(3600)
"""
WAVES = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512)
Sizes = dict[str, tuple[int, float]]


@dataclass(kw_only=True)
class Site:
    """A running head and what was submitted to it."""

    cluster: RayCluster
    pid: int
    program: Path
    url: str
    names: list[str] = field(default_factory=list)

    def submit(self) -> float:
        """Submit one more leg; return the seconds that took."""
        name = f"leg_{len(self.names):04}@1.1"
        env = leg_environment("http://127.0.0.1:9", self.url, secrets.token_hex(32))
        begun = time.monotonic()
        self.cluster.submit(name, str(self.program), sys.executable, env)
        self.names.append(name)
        return time.monotonic() - begun

    def await_running(self, bound_s: float) -> bool:
        """Poll as the agent does; tell whether every leg ran, and the last ones wrote their line, within the bound."""
        begun = time.monotonic()
        while time.monotonic() - begun < bound_s:
            statuses = Counter(job.status for job in self.cluster.jobs().values())
            if statuses[RayStatus.RUNNING] == len(self.names):
                last = self.names[-8:]
                if all("here" in self.cluster.log(name).splitlines() for name in last):
                    return True
            elif any(status.ended for status in statuses):
                return False
            time.sleep(0.5)
        return False

    def cpu_s(self, over_s: float = 10.0) -> float:
        """CPU seconds that the whole cluster uses in a second while nothing is asked of it."""

        def used() -> float:
            spent = 0.0
            for process in psutil.Process(self.pid).children(recursive=True):
                try:
                    spent += sum(process.cpu_times()[:4])  # with those of its children that have ended
                except psutil.Error:
                    continue
            return spent

        before, begun = used(), time.monotonic()
        time.sleep(over_s)
        return (used() - before) / (time.monotonic() - begun)

    def sizes(self) -> Sizes:
        """Per kind of process: how many there are, and their PSS in MB."""
        found: Sizes = {}
        for process in psutil.Process(self.pid).children(recursive=True):
            try:
                mb = process.memory_full_info().pss / 1e6
                kind = kind_of(process.cmdline())
            except psutil.Error:
                continue
            number, total = found.get(kind, (0, 0.0))
            found[kind] = number + 1, total + mb
        return found


def kind_of(command: list[str]) -> str:
    """Say which part of a leg or of the cluster a process is."""
    line = " ".join(command)
    if "JobSupervisor" in line:
        return "supervisor"
    if "kill -s 0" in line or line.startswith("sleep 1"):
        return "watcher"
    if "leg.py" in line:
        return "program"
    if line.startswith("ray::"):
        return "worker"
    return "head"


@contextmanager
def site(program: str, gpus: int) -> Iterator[Site]:
    """Start one head as the embedded federation does; end it with everything it started."""
    with tempfile.TemporaryDirectory(prefix="cs-") as folder:
        directory = FederationDir(root=Path(folder) / f"legs-{secrets.token_hex(4)}")
        directory.site(SITE).mkdir(parents=True)
        token = directory.site(SITE) / "ray.token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        ports = dict(zip((f"{SITE}/{name}" for name in PORTS), free_ports(len(PORTS)), strict=True))
        federation = {
            "sites": {SITE: {"gpu_resource": "sim_gpu", "gpus": gpus}},
            "ports": ports,
            "ray_tmp": str(Path(folder) / "r"),
        }
        ready = threading.Event()
        keeper = Keeper(
            children._ray(directory, federation, SITE),
            federation=directory.name,
            changed=lambda status: ready.set() if status.state != "starting" else None,
            started=lambda _session: None,
        )
        keeper.start()
        try:
            if not ready.wait(130) or keeper.status.state != "ready":
                raise SystemExit(f"the head did not start: {keeper.status.note}")
            url = f"http://127.0.0.1:{ports[f'{SITE}/ray_dashboard']}"
            path = Path(folder) / "leg.py"
            path.write_text(program)
            yield Site(cluster=RayCluster(url, str(token)), pid=keeper.status.pid, program=path, url=url)
        finally:
            keeper.halt()
            keeper.finish()


def timed(calls: int, work: Callable[[], object]) -> float:
    """Median milliseconds of a call."""
    spans = []
    for _ in range(calls):
        begun = time.perf_counter()
        work()
        spans.append(time.perf_counter() - begun)
    return 1000 * statistics.median(spans)


def legs(most: int, bound_s: float, most_mb: float, budget_s: float, connect: bool) -> Iterator[Row]:
    """Rows of every wave, then of the end of all."""
    begun = time.monotonic()
    with site(CONNECTS if connect else SLEEPS, most) as here:
        empty, limit = here.sizes(), ""
        yield row("the head with no leg: memory", total(empty), "MB", None)
        for number in (wave for wave in WAVES if wave <= most):
            added, at, submits, all_run = number - len(here.names), time.monotonic(), [0.0], False
            try:
                while len(here.names) < number:
                    submits.append(here.submit())
                all_run = here.await_running(bound_s)
            except UnreachableError as fault:
                limit = fault.what
            seconds, jobs = time.monotonic() - at, here.cluster.jobs()
            running = sum(job.status is RayStatus.RUNNING for job in jobs.values())
            yield row(f"{number} legs: run side by side", running, "legs", 30)
            yield row(f"{number} legs: until the last {added} of them run, or were given up", seconds, "s", None)
            yield row(f"{number} legs: longest submission", 1000 * max(submits), "ms", None)
            yield row(f"{number} legs: CPU of the whole cluster while all sleep", here.cpu_s(), "cores", None)
            yield from polls(here, number)
            sizes = here.sizes()
            yield from memory(number, sizes, empty)
            if not all_run:
                limit = limit or f"{running} of {number} run after {bound_s:g} s"
            elif total(sizes) > most_mb:
                limit = f"the cluster's memory passed {most_mb:g} MB"
            elif time.monotonic() - begun > budget_s:
                limit = f"{budget_s:g} s were up"
            if limit:
                break
        print(f"ended: {limit or 'all that were asked for run'}", file=sys.stderr)
        yield from ends(here)


def polls(here: Site, number: int) -> Iterator[Row]:
    """What one look at all legs costs the agent."""
    names = here.names[: min(16, len(here.names))]
    whole = timed(5, here.cluster.jobs)
    single = timed(1, lambda: [here.cluster.job(name) for name in names]) / len(names) * number
    log = timed(1, lambda: [here.cluster.log(name) for name in names]) / len(names) * number
    yield row(f"{number} legs: status of all in one call", whole, "ms", round(single), most=500)
    yield row(f"{number} legs: status of all, one call each", single, "ms", None)
    yield row(f"{number} legs: all logs, one call each", log, "ms", None, most=3000)


def total(sizes: Sizes) -> float:
    """Memory of all processes in MB."""
    return sum(mb for _, mb in sizes.values())


def memory(number: int, sizes: Sizes, empty: Sizes) -> Iterator[Row]:
    """What one leg adds."""
    for kind in ("supervisor", "watcher", "program", "worker"):
        mb = sizes.get(kind, (0, 0.0))[1] - empty.get(kind, (0, 0.0))[1]
        yield row(f"{number} legs: {kind} per leg", mb / number, "MB", None)
    yield row(f"{number} legs: all that one leg adds", (total(sizes) - total(empty)) / number, "MB", None)
    yield row(f"{number} legs: the whole cluster", total(sizes), "MB", None)


def ends(here: Site) -> Iterator[Row]:
    """Stop all legs as the agent does, then delete their records."""
    begun, number = time.monotonic(), len(here.names)
    for name in here.names:
        here.cluster.stop(name)
    while not all(job.status.ended for job in here.cluster.jobs().values()) and time.monotonic() - begun < 120:
        time.sleep(0.5)
    statuses = Counter(job.status.value for job in here.cluster.jobs().values())
    yield row(f"{number} legs: until all are stopped", time.monotonic() - begun, "s", None)
    yield row(f"{number} legs: that did not stop, or failed", number - statuses["STOPPED"], "legs", 0, most=0)
    begun = time.monotonic()
    for name in here.names:
        here.cluster.delete(name)
    yield row(f"{number} legs: their records deleted", time.monotonic() - begun, "s", None)


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--most", type=int, default=128, help="legs side by side at the most")
    parser.add_argument("--connect", action="store_true", help="programs join the cluster and hold a simulated GPU")
    parser.add_argument("--bound-s", type=float, default=240, help="seconds in which a wave must run")
    parser.add_argument("--most-gb", type=float, default=12, help="memory at which no further wave begins")
    parser.add_argument("--budget-s", type=float, default=300, help="seconds after which no further wave begins")
    choice = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to stop"))  # so that the head ends with it
    rows = legs(choice.most, choice.bound_s, 1000 * choice.most_gb, choice.budget_s, choice.connect)
    show(rows, as_json=choice.json)


if __name__ == "__main__":
    main()
