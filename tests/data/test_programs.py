"""The programs clean and tokenize as legs: real Ray, real S3, a gateway that speaks the legs' HTTP."""

from __future__ import annotations

import json
import runpy
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from consortium.client.leg import LegSession
from consortium.data.register import register_collection
from consortium.data.sample import generate
from consortium.domain.codec import from_json, to_json
from consortium.domain.data import Dataset
from consortium.domain.protocol import LegContext, StoreAccess
from consortium.keys.canonical import digest_json
from consortium.storage.objects import ObjectStore
from tests.builders import new_id
from tests.ray_local import Run, cluster
from tests.s3 import S3

pytestmark = pytest.mark.integration
JOBS = Path(__file__).parents[2] / "jobs"
CLEAN = {
    "languages": [],
    "min_language_confidence": 0.5,
    "min_chars": 40,
    "max_chars": 2_000_000,
    "dedup": "exact",
    "redact": ["email"],
}
TOKENIZE = {"vocab_size": 400, "min_count": 3, "max_word_chars": 32, "held_out_percent": 5}


@contextmanager
def gateway(context: LegContext) -> Iterator[tuple[str, dict[str, Any]]]:
    """Serve one leg; yields the URL and what the leg left: its progress, agreements, result, failure."""
    left: dict[str, Any] = {"progress": [], "agreements": {}}

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, value: object) -> None:
            body = json.dumps(to_json(value)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            topic = self.path.removeprefix("/leg/agreements/")
            self._answer(context if self.path == "/leg/context" else {context.site: left["agreements"][topic]})

        def do_POST(self) -> None:
            said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            kind, _, topic = self.path.removeprefix("/leg/").partition("/")
            if kind == "progress":
                left["progress"].append(said)
            elif kind == "agreements":
                left["agreements"][topic] = said["digest"]
            else:
                left[kind] = said
            self._answer({})

        def log_message(self, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", left
    finally:
        server.shutdown()
        server.server_close()


def run_program(kind: str, url: str) -> None:
    """Run a program's function in the process that is connected to Ray."""
    with LegSession(url, "token") as session:
        runpy.run_path(str(JOBS / f"{kind}.py"))["program"](session)


def leg(kind: str, store: ObjectStore, s3: S3, inputs: tuple[Dataset, ...], params: dict[str, Any]) -> LegContext:
    return LegContext(
        job=new_id("job", 1),
        job_kind=kind,
        job_name=kind,
        attempt=new_id("att", 1),
        leg=new_id("leg", 1),
        epoch="1.1",
        site="de-1",
        partner="de",
        peers=("de-1",),
        params=params,
        inputs=inputs,
        gpus=1,
        gpus_per_worker=1,
        gpu_resource="sim_gpu",
        store=StoreAccess(
            endpoint=s3.endpoint,
            bucket=store.bucket,
            access_key=s3.access_key,
            secret_key=s3.secret_key,
            prefix=f"jobs/{kind}/",
        ),
    )


@pytest.fixture(scope="module")
def on_ray() -> Iterator[Run]:
    with cluster() as run:
        yield run


def test_raw_text_becomes_clean_text_becomes_tokens(on_ray: Run, s3: S3, store: ObjectStore, tmp_path: Path) -> None:
    sample = generate("de", documents=400)
    sample.write(tmp_path / "de.jsonl")
    raw = register_collection([tmp_path], store, "laws-de", "de-1", dataset_id=new_id("ds", 1))
    with gateway(leg("clean", store, s3, (raw,), CLEAN)) as (url, left):
        on_ray(run_program, "clean", url)
    [made] = from_json(tuple[Dataset, ...], left["result"]["outputs"])
    assert (made.name, made.documents, made.parents) == ("laws-de-clean", sample.truth.clean, (raw.id,))
    assert left["result"]["manifest_digest"] == digest_json(left["result"]["manifest"]) == made.manifest_digest
    assert left["result"]["metrics"]["documents_in"] == 400
    assert {step["phase"] for step in left["progress"]} >= {"screen", "settle"}

    with gateway(leg("tokenize", store, s3, (made,), TOKENIZE)) as (url, left):
        on_ray(run_program, "tokenize", url)
    training, held_out = from_json(tuple[Dataset, ...], left["result"]["outputs"])
    assert (training.name, held_out.name) == ("laws-de-tokens", "laws-de-tokens-heldout")
    assert training.documents + held_out.documents == made.documents
    assert training.attributes["tokenizer_digest"] == left["agreements"]["tokenizer"]
    assert training.attributes["vocab_size"] == "400"
    assert left["result"]["metrics"]["tokens_tokens"] == training.tokens > 0
    assert {step["phase"] for step in left["progress"]} >= {"count", "encode", "shuffle"}


def test_nothing_to_read_is_a_clear_error(on_ray: Run, s3: S3, store: ObjectStore) -> None:
    from consortium.errors import UsageError

    with gateway(leg("clean", store, s3, (), CLEAN)) as (url, _), pytest.raises(UsageError, match="no input lives"):
        on_ray(run_program, "clean", url)
