"""The figures of the whole pipeline on a real Ray cluster with a real S3 store; part of `tests.benchmarks.cleaning`.

    python -m tests.benchmarks.cleaning_pipeline [--json] [--only all,again,scaling,memory,kills]

- `all`: every stage on the three real corpora, two cores: register, then profile `web` with all rules, near-duplicates,
  personal data and screens; then `standard`, whose output is tokenized. Ray and its workers have started before.
- `again`: a second run of both profiles on their own output.
- `scaling`: the whole of profile `web` on two cores against one, on which Ray and the store run, too.
- `memory`: the largest memory of a worker of its own (USS), on the longest documents and on shards of short ones.
- `kills`: SIGKILL at random points of 20 runs, of the program or of a worker; what is resumed is compared byte by byte.

Seconds are of the wall, so other work on the machine counts.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from consortium.config import compose_job
from consortium.data import clean, manifest, outputs, tokenize
from consortium.data.register import register_collection
from consortium.data.sample import generate
from consortium.domain.cleaning import MAX_CHARS, CleanConfig
from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Dataset
from consortium.domain.tokenizing import TokenizeConfig
from consortium.storage.objects import ObjectStore
from tests.benchmarks.table import Row, arguments, row, show
from tests.builders import new_id
from tests.cleaned import clean_dataset
from tests.ray_local import Run, cluster
from tests.s3 import S3, serving

KILLS = 20
PARTS = ("all", "again", "scaling", "memory", "kills")


def folder() -> Path:
    """Where the corpora are, if they are."""
    return Path(os.environ.get("CONSORTIUM_CORPORA", Path(__file__).parents[3] / "shared" / "corpora"))


def profile(name: str) -> CleanConfig:
    """Return a profile as `configs/clean` has it."""
    return from_json(CleanConfig, compose_job("clean", [f"clean={name}"]).params)


def registered(store: ObjectStore) -> list[Dataset]:
    """Register the three real corpora."""
    return [
        register_collection([path], store, f"laws-{path.stem}", "fr-1", dataset_id=new_id("ds", at))
        for at, path in enumerate(sorted(folder().glob("*.parquet")), 1)
    ]


def cleaned(run: Run, datasets: Sequence[Dataset], config: CleanConfig, store: ObjectStore, prefix: str) -> list[Any]:
    """Clean datasets, one after another, in the process that is connected to Ray."""
    found = run(clean.clean_datasets, list(datasets), config, store, prefix)
    return [found[dataset.id] for dataset in datasets]


def warm(run: Run, store: ObjectStore) -> None:
    """Have the workers import what they need."""
    with tempfile.TemporaryDirectory() as place:
        generate("fr", documents=400).write(Path(place, "a.jsonl"))
        small = register_collection([place], store, "warm", "fr-1", dataset_id=new_id("ds", 9), shard_text_bytes=20_000)
    cleaned(
        run, [small], replace(profile("web"), filters=("gopher_repetition",)), store, f"warm/{secrets.token_hex(4)}"
    )


def everything(run: Run, s3: S3) -> Iterator[Row]:
    """All stages on the three corpora."""
    store = s3.fresh()
    warm(run, store)
    began = time.monotonic()
    raw = registered(store)
    mega = sum(int(dataset.attributes["text_bytes"]) for dataset in raw) / 1e6
    yield row(f"register {mega:.0f} MB", time.monotonic() - began, "s")
    whole = time.monotonic() - began
    for name in ("web", "standard"):
        began = time.monotonic()
        stages = cleaned(run, raw, profile(name), store, f"jobs/{name}")
        took = time.monotonic() - began
        whole += took
        came = sum(sum(stage.manifest["counts"]["documents_in"].values()) for stage in stages)
        stays = sum(sum(stage.manifest["counts"]["documents_out"].values()) for stage in stages)
        yield row(f"clean, profile {name}: {stays:,} of {came:,} documents stay", took, "s")
        yield row(f"clean, profile {name}", mega / took, "MB/s")
    clean_sets = [
        outputs.clean_output(dataset, stage, new_id("ds", 20 + at))
        for at, (dataset, stage) in enumerate(zip(raw, stages, strict=True))
    ]
    began = time.monotonic()
    tokens = run(tokenized, clean_sets, store)
    took = time.monotonic() - began
    whole += took
    yield row(f"tokenize: count, train a BPE of 4,096, write {tokens / 1e6:.1f} million tokens", took, "s")
    yield row("the three corpora, all stages, two cores", whole, "s", most=60)


def tokenized(datasets: Sequence[Dataset], store: ObjectStore) -> int:
    """Tokenize at one site; returns the number of tokens. Runs in the process that is connected to Ray."""
    config = from_json(TokenizeConfig, compose_job("tokenize", []).params)

    class Alone:
        def send(self, *args: object, **named: object) -> None: ...

        def wait_for(self, *args: object) -> dict[str, bytes]:
            return {}

        def wait_agreement(self, *args: object) -> None: ...

    counts = tokenize.count_datasets(datasets, config, store)
    made = tokenize.agree_on_tokenizer(counts, "fr-1", ("fr-1",), Alone(), config)
    vocabulary = tokenize.keep_tokenizer(made, store, "jobs/tokens")
    stages = [tokenize.tokenize_dataset(each, vocabulary, config, store, "jobs/tokens") for each in datasets]
    return sum(shard.tokens for stage in stages for shards in stage.outputs.values() for shard in shards)


def again(run: Run, s3: S3) -> Iterator[Row]:
    """A second run on its own output."""
    store = s3.fresh()
    raw = registered(store)
    for name in ("standard", "web"):
        config = profile(name)
        first = cleaned(run, raw, config, store, "jobs/first")
        made = [
            outputs.clean_output(dataset, stage, new_id("ds", 40 + at))
            for at, (dataset, stage) in enumerate(zip(raw, first, strict=True))
        ]
        second = cleaned(run, made, config, store, "jobs/second")
        drops = sum(
            sum(by_language.values())
            for stage in second
            for by_language in stage.manifest["counts"]["removed"].values()
        )
        changes = sum(sum(stage.manifest["counts"]["edits"].values()) for stage in second)
        of = sum(each.documents for each in made)
        yield row(f"{name}: a second run on its own output of {of:,} documents drops", drops, "documents", 7, most=0)
        yield row(f"{name}: and changes", changes, "edits", most=0)


def scaling() -> Iterator[Row]:
    """Two cores against one: everything, Ray and the store included, is kept to so many."""
    took: dict[int, list[float]] = {1: [], 2: []}
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("skipped: two cores against one need two", file=sys.stderr)
        return
    for count in (1, 2, 1, 2):
        os.sched_setaffinity(0, cores[:count])  # what is started from here inherits it
        try:
            with tempfile.TemporaryDirectory() as place, serving(Path(place)) as s3, cluster(count) as run:
                store = s3.fresh()
                raw = registered(store)
                warm(run, store)
                began = time.monotonic()
                cleaned(run, raw, profile("web"), store, "jobs/scaling")
                took[count].append(time.monotonic() - began)
        finally:
            os.sched_setaffinity(0, cores)
    yield row("whole pipeline, one core", min(took[1]), "s")
    yield row("whole pipeline, two cores", min(took[2]), "s")
    yield row("two cores against one", min(took[1]) / min(took[2]), "times", 2.0, least=1.7)


def memory(run: Run, s3: S3) -> Iterator[Row]:
    """The largest a Ray worker becomes."""
    store = s3.fresh()
    text = " ".join(line["text"] for line in generate("fr", documents=2_000, seed=1).rows)
    with tempfile.TemporaryDirectory() as place:
        for at, chars in enumerate((30_000_000, MAX_CHARS - 9, MAX_CHARS - 9)):
            Path(place, f"{at}.txt").write_text(f"{at} " + (text * (chars // len(text) + 1))[:chars])
        for at in range(40):
            generate("fr", documents=2_000, seed=at).write(Path(place, f"short-{at}.jsonl"))
        raw = register_collection([place], store, "large", "fr-1", dataset_id=new_id("ds", 1), languages=("fr",))
    peak = [0]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            for process in psutil.process_iter(["name", "cmdline"]):
                if (process.info["name"] or "").startswith("ray::"):
                    try:
                        peak[0] = max(peak[0], process.memory_full_info().uss)
                    except psutil.Error:
                        continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        config = replace(profile("web"), max_chars=MAX_CHARS, filters=profile("strict").filters)
        cleaned(run, [raw], config, store, "jobs/large")
    finally:
        stop.set()
        thread.join()
    yield row(
        "memory of a worker (USS), documents of 30 and 8 million characters among short ones",
        peak[0] / 1e9,
        "GB",
        most=1,
    )


def kills(run: Run, s3: S3, count: int = KILLS, documents: int = 8_000, seed: int = 0) -> Iterator[Row]:
    """SIGKILL at random points, resumed until done: on law texts where they are, else on a sample, which is smaller."""
    store = s3.fresh()
    with tempfile.TemporaryDirectory() as place:
        corpus = next(iter(sorted(folder().glob("*.parquet"))), None)
        if corpus is None:
            generate("fr", documents=1_000).write(Path(place, "a.jsonl"))
        else:
            pq.write_table(pq.read_table(corpus).slice(0, documents), Path(place, "a.parquet"))
        raw = register_collection([place], store, "laws", "fr-1", dataset_id=new_id("ds", 1), shard_text_bytes=400_000)
    config = profile("strict")
    whole = outcome(store, cleaned(run, [raw], config, store, "jobs/whole")[0], "jobs/whole")
    objects = len(list(store.list("jobs/whole/")))
    draw = random.Random(seed)
    address = run(_address)
    killed, differ, lives = 0, 0, 0
    while killed < count:
        prefix = f"jobs/{secrets.token_hex(4)}"
        while True:
            lives += 1
            program = _program(address, raw, config, s3, store.bucket, prefix)
            there = len(list(store.list(f"{prefix}/")))
            if killed < count and _reaches(program, store, prefix, draw.randint(there, objects)):
                _kill(program, draw)
                killed += 1
                continue
            if program.wait() != 0:
                raise RuntimeError(f"a run that was not killed ended with {program.returncode}")
            break
        stage = manifest.finished(store, _marker(store, prefix))
        assert stage is not None
        differ += outcome(store, stage, prefix) != whole
    what = f"SIGKILL at {killed} random points, resumed in {lives} runs: results that differ"
    yield row(what, differ, "results", most=0)


def _reaches(program: subprocess.Popen[bytes], store: ObjectStore, prefix: str, objects: int) -> bool:
    """Wait until so many objects are there; False where the program ends before."""
    while program.poll() is None:
        if len(list(store.list(f"{prefix}/"))) >= objects:
            return True
        time.sleep(0.02)
    return False


def outcome(store: ObjectStore, stage: manifest.Stage, prefix: str) -> tuple[str, list[str], list[str]]:
    """Return what must be the same bytes: the manifest, clean shards, annotations and index, read and checked."""
    kept = [
        f"{prefix}/{kind}/{str(digest)[7:]}.parquet"
        for kind in ("annotations", "index")
        for digest in stage.manifest[kind]
    ]
    for shard in stage.outputs["clean"]:
        store.get(shard.key, digest=shard.digest)
    for key in kept:
        store.get(key, digest="sha256:" + Path(key).stem)
    return stage.manifest_digest, [s.digest for s in stage.outputs["clean"]], [Path(key).stem for key in kept]


def _marker(store: ObjectStore, prefix: str) -> str:
    [marker] = [key for key in store.list(f"{prefix}/done/") if "/done/clean-" in key]
    return marker


def _address() -> dict[str, str]:
    import ray

    return {
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        **{name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")},
    }


def _program(
    address: dict[str, str], raw: Dataset, config: CleanConfig, s3: S3, bucket: str, prefix: str
) -> subprocess.Popen[bytes]:
    import json

    told = json.dumps([to_json(raw), to_json(config), list(s3), bucket, prefix])
    command = [sys.executable, "-c", "from tests.benchmarks.cleaning_pipeline import one; one()"]
    return subprocess.Popen(command, env={**os.environ, **address, "TOLD": told}, start_new_session=True)


def one() -> None:
    """Clean one dataset, as a leg's program does: what `kills` starts and kills."""
    import json

    from consortium.data.cluster import connected

    raw, config, s3, bucket, prefix = json.loads(os.environ["TOLD"])
    with connected():
        clean_dataset(from_json(Dataset, raw), from_json(CleanConfig, config), S3(*s3).store(bucket), prefix)


def _kill(program: subprocess.Popen[bytes], draw: random.Random) -> None:
    """Kill a worker at work, every third time, and the program with all it started."""
    if draw.random() < 1 / 3:
        workers = [p for p in psutil.process_iter(["name"]) if (p.info["name"] or "").startswith("ray::Map")]
        for worker in workers[:1]:
            worker.kill()
    time.sleep(draw.uniform(0, 0.2))
    os.killpg(program.pid, signal.SIGKILL)
    program.wait()


def rows(only: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of the parts asked for."""
    if not any(folder().glob("*.parquet")):
        print("skipped but memory and kills: no corpora; name their folder in CONSORTIUM_CORPORA", file=sys.stderr)
        only = [part for part in only if part in ("memory", "kills")]
    with ExitStack() as stack:
        s3 = stack.enter_context(serving(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        parts: dict[str, Callable[[Run, S3], Iterator[Row]]] = {
            "all": everything, "again": again, "memory": memory, "kills": kills
        }  # fmt: skip
        if set(only) & set(parts):
            with cluster() as run:
                for part in parts:
                    if part in only:
                        yield from parts[part](run, s3)
        if "scaling" in only:
            yield from scaling()


if __name__ == "__main__":
    asked = arguments(__doc__, PARTS).parse_args()
    show(rows(asked.only), as_json=asked.json)
