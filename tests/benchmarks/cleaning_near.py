"""Near-duplicates, decontamination and screens on real law: `python -m tests.benchmarks.cleaning_near [--json]`.

One core. Times include everything from the texts in memory to who survives: words, n-grams, minima, bands, reading the
candidates again, exact Jaccard, clusters. References: datatrove 0.10 (its four MinHash stages) and rensa (signatures
alone), measured on one core of the machine the targets were set on; with `CONSORTIUM_DATATROVE=PYTHON` (an interpreter
that has datatrove 0.10, spacy and xxhash below 3.6) datatrove runs on some of the same texts too. The truth about
near-duplicates is worked out here the plain way: sets of word tuples, all pairs that can reach the threshold (prefix
filter: Chaudhuri and others, 2006).
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from consortium.data.across import KeepConfig, decide, detail, met, offer, read_offer
from consortium.data.decontaminate import EvaluationSets, decontaminate
from consortium.data.documents import Document, Notes
from consortium.data.jaccard import Exact
from consortium.data.minhash import sign, view
from consortium.data.neardup import survivors
from consortium.data.poisoning import judge, observe
from consortium.data.shingles import hashing, mix, read
from consortium.domain.cleaning import DecontaminateConfig, NearConfig, PoisoningConfig
from tests.benchmarks.table import Row, arguments, row, show

Corpora = dict[str, list[str]]
Gram = tuple[str, ...]

CONFIG = NearConfig()
SAMPLE = 12_000
EVERY = 97
WORD = re.compile(r"[^\W_]+")
KEY = bytes(range(32))
FEW = 4_000
DATATROVE = """
import json, sys, time
from datatrove.data import Document
from datatrove.pipeline.dedup import minhash
from datatrove.utils.hashing import HashConfig
folder = sys.argv[1]
texts = json.load(open(folder + "/texts.json"))
config = minhash.MinhashConfig(
    hash_config=HashConfig(precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=5
)
documents = lambda: (Document(text=text, id=str(at)) for at, text in enumerate(texts))
sign = minhash.MinhashDedupSignature(output_folder=folder + "/signatures", config=config, language="fra")
sign.run(iter([Document(text="un deux trois quatre cinq six", id="warm")]), 0, 1)
begun = time.perf_counter()
sign.run(documents(), 0, 1)
for bucket in range(14):
    minhash.MinhashDedupBuckets(folder + "/signatures", folder + "/buckets", config=config).run(None, bucket, 14)
minhash.MinhashDedupCluster(folder + "/buckets", folder + "/removed", config=config).run(None, 0, 1)
kept = len(list(minhash.MinhashDedupFilter(folder + "/removed").run(documents(), 0, 1)))
print(json.dumps({"seconds": time.perf_counter() - begun, "kept": kept}))
"""


def corpora() -> Corpora:
    """The three real corpora's texts; none where they are missing."""
    folder = Path(os.environ.get("CONSORTIUM_CORPORA", Path(__file__).parents[3] / "shared" / "corpora"))
    found = {path.stem: pq.read_table(path, columns=["text"]) for path in sorted(folder.glob("*.parquet"))}
    if not found:
        print(f"skipped: no corpora in {folder}; name their folder in CONSORTIUM_CORPORA", file=sys.stderr)
    return {name: table.column("text").to_pylist() for name, table in found.items()}


def rows(texts: Corpora) -> Iterator[Row]:
    """All rows of the table."""
    if texts:
        read(["warm"], hashing())
        yield from speed(texts)
        yield from others(texts)
        yield from quality(texts)
        yield from stability(texts)
        yield from borders(texts)
        yield from contamination(texts)
        yield from screens(texts)
    yield from memory()


def speed(texts: Corpora) -> Iterator[Row]:
    """From texts to survivors, per corpus."""
    for name, part in texts.items():
        with one_core():
            begun = time.perf_counter()
            data = sign(part, CONFIG)
            signed_s = time.perf_counter() - begun
            survive(part, CONFIG, data)
            whole_s = time.perf_counter() - begun
        yield row(f"MinHash 5-grams 14x8, all stages, {name}", megabytes(part) / whole_s, "MB/s", 0.27, least=5)
        yield row(f"signatures alone, {name}", megabytes(part) / signed_s, "MB/s", 4.4)


def others(texts: Corpora) -> Iterator[Row]:
    """datatrove on the first texts of one corpus, where an interpreter with it is named; it takes a minute."""
    python = os.environ.get("CONSORTIUM_DATATROVE")
    if not python:
        return
    part = texts["fr"][:FEW]
    with tempfile.TemporaryDirectory() as folder, one_core():
        (Path(folder) / "texts.json").write_text(json.dumps(part))
        done = subprocess.run([python, "-c", DATATROVE, folder], check=True, capture_output=True, text=True)
        told = json.loads(done.stdout.splitlines()[-1])
        begun = time.perf_counter()
        kept = len(keep(part))
        seconds = time.perf_counter() - begun
    yield row(f"datatrove 0.10, {FEW} texts of fr, all stages", megabytes(part) / told["seconds"], "MB/s", None)
    yield row("the same texts here", megabytes(part) / seconds, "MB/s", round(megabytes(part) / told["seconds"], 3))
    yield row("kept here, and there (unverified, digits as one)", kept, "documents", told["kept"])


def quality(texts: Corpora) -> Iterator[Row]:
    """Pairs of different texts at the threshold, against the plain way, on a sample of each corpus."""
    truth = found = by_chance = accepted = right = 0.0
    for part in texts.values():
        sets = [plain_grams(text) for text in part[:SAMPLE]]
        similar = similar_pairs(sets, CONFIG.threshold)
        told: list[tuple[int, int]] = []
        chosen = survive(part[:SAMPLE], CONFIG, told=told)
        truth += len(similar)
        found += sum(chosen[one] == chosen[other] for one, other in similar)
        by_chance += sum(CONFIG.chance(similarity) for similarity in similar.values())
        accepted += len(told)
        right += sum(similarity_of(sets[one], sets[other]) >= CONFIG.threshold for one, other in told)
    yield row("pairs at Jaccard >= 0.8 in the samples", truth, "pairs", None)
    yield row("of them in one cluster", 100 * found / truth, "%", round(100 * by_chance / truth, 2), least=98)
    yield row("pairs joined that are at Jaccard >= 0.8", 100 * right / accepted, "%", None, least=98)


def stability(texts: Corpora) -> Iterator[Row]:
    """A second run on what survived."""
    dropped = 0
    for part in texts.values():
        kept = keep(part)
        dropped += len(kept) - len(keep(kept))
    yield row("documents a second run on its own output drops", dropped, "documents", 7, most=0)


def borders(texts: Corpora) -> Iterator[Row]:
    """Two states that share a third of a corpus: what leaves, and what is found without text."""
    part = next(iter(texts.values()))
    part = [part[at] for at in keep_places(part)][:15_000]
    left, right = part[:10_000], part[5_000:]
    keep_config = KeepConfig(states=("one", "two"))
    begun = time.perf_counter()
    signed = {state: view(sign(own, CONFIG, KEY), CONFIG, KEY) for state, own in (("one", left), ("two", right))}
    sent = {state: offer(found, [""] * len(found), CONFIG, keep_config, KEY) for state, found in signed.items()}
    seconds = time.perf_counter() - begun
    offers = {state: read_offer(sent[state][0], CONFIG, keep_config, KEY, sender=state) for state in sent}
    places = met(offers, keep_config.states)
    details = {state: detail(signed[state], sent[state][1], places[state]) for state in sent}
    gone = sent["two"][1][decide(offers, details, CONFIG, keep_config).gives_up["two"]]
    shared = {at for at in sent["two"][1].tolist() if at < 5_000}
    yield row("across a border: shared documents found", 100 * len(shared & set(gone.tolist())) / len(shared), "%", 100)
    size = len(sent["one"][0]) / len(sent["one"][1])
    yield row("across a border: bytes per document offered", size, "B", None)
    yield row("across a border: signing and sealing", megabytes(left + right) / seconds, "MB/s", None, least=5)


def contamination(texts: Corpora) -> Iterator[Row]:
    """Every 97th document is an evaluation text: they go, with all that quote 13 words of them."""
    for name, part in texts.items():
        documents = [Document(id=str(at), text=t, row=at, language=name, declared=name) for at, t in enumerate(part)]
        sets = EvaluationSets({"held out": part[::EVERY]}, DecontaminateConfig())
        notes = Notes(shard=0)
        with one_core():
            begun = time.perf_counter()
            kept = list(decontaminate(sets)(documents, notes))
            seconds = time.perf_counter() - begun
        yield row(f"decontamination by 13 words, {name}", megabytes(part) / seconds, "MB/s", None, least=15)
        planted = {at for at in range(0, len(part), EVERY) if len(WORD.findall(part[at])) >= 20}
        missed = planted & {document.row for document in kept}
        yield row(f"evaluation texts of 20 words or more left in, {name}", len(missed), "documents", None, most=0)


def screens(texts: Corpora) -> Iterator[Row]:
    """Law in thirty runs, each as if of one contributor: honest, each with subjects of its own."""
    whole = [text for part in texts.values() for text in part]
    languages = [name for name, part in texts.items() for _ in part]
    senders = [f"{name}{at * 10 // len(part)}" for name, part in texts.items() for at in range(len(part))]
    with one_core():
        begun = time.perf_counter()
        seen = observe(whole, senders, languages)
        seconds = time.perf_counter() - begun
    yield row("poisoning screens, looking at texts", megabytes(whole) / seconds, "MB/s", None, least=5)
    found = judge(seen, np.array(survive(whole, CONFIG)), PoisoningConfig())
    accused = len({finding.contributor for finding in found})
    yield row(f"honest contributors of {len(set(senders))} set aside", accused, "contributors", None)


def memory(documents: int = 2_000_000) -> Iterator[Row]:
    """Clusters over many signatures in memory maps, in a process of its own: what it holds besides the maps."""
    shard = 100_000
    draw = np.random.Generator(np.random.PCG64(0))
    with tempfile.TemporaryDirectory() as folder:
        for at in range(documents // shard):
            data = bytearray(sign([""] * shard, CONFIG))
            into = view(memoryview(data), CONFIG)
            into.bands[:] = mix(draw.integers(0, documents * 20, into.bands.shape, dtype=np.uint64))
            into.sums[:] = draw.integers(0, 2**64, shard, dtype=np.uint64)
            into.words[:] = 100
            into.minima[:] = draw.integers(0, 256, into.minima.shape, dtype=np.uint8)
            (Path(folder) / f"{at:05}").write_bytes(data)
        run = [sys.executable, "-m", __spec__.name if __spec__ else __name__, "--cluster", folder]
        told = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    yield row(f"clusters of {documents:,} documents", told["seconds"], "s", None)
    yield row("memory for it, maps not counted", told["bytes"] / 1e6, "MB", None, most=1000)
    yield row("the same per document", told["bytes"] / documents, "B", None)


def cluster(folder: str) -> None:
    """Cluster the signatures in a folder; print seconds, and by how much the most memory held grew."""
    maps = [np.memmap(path, mode="r") for path in sorted(Path(folder).iterdir())]
    shards = [view(memoryview(mapped), CONFIG) for mapped in maps]
    most, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            most[0] = max(most[0], anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    begun = time.perf_counter()
    survivors(shards, CONFIG, lambda pairs: np.ones(len(pairs), dtype=bool))
    seconds = time.perf_counter() - begun
    stop.set()
    watcher.join()
    print(json.dumps({"seconds": seconds, "bytes": most[0]}))


def survive(
    texts: Sequence[str], config: NearConfig, data: bytes | None = None, told: list[tuple[int, int]] | None = None
) -> list[int]:
    """Who stands for each text; `told` gets the pairs found similar."""
    signed = [view(sign(texts, config) if data is None else data, config)]
    exact = Exact(signed, config, lambda _, chosen: [texts[at] for at in chosen.tolist()])

    def verify(pairs: Any) -> Any:
        similar = exact(pairs)
        if told is not None:
            told.extend(map(tuple, pairs[similar].tolist()))
        return similar

    return survivors(signed, config, verify)[0].tolist()


def keep_places(texts: Sequence[str]) -> list[int]:
    return [at for at, stands in enumerate(survive(texts, CONFIG)) if at == stands]


def keep(texts: Sequence[str]) -> list[str]:
    return [texts[at] for at in keep_places(texts)]


def plain_grams(text: str) -> frozenset[Gram]:
    words = WORD.findall(unicodedata.normalize("NFC", text).casefold())
    last = max(1, len(words) - CONFIG.ngram + 1)
    return frozenset(tuple(words[at : at + CONFIG.ngram]) for at in range(last)) if words else frozenset()


def similarity_of(one: frozenset[Gram], other: frozenset[Gram]) -> float:
    return len(one & other) / len(one | other)


def similar_pairs(sets: Sequence[frozenset[Gram]], threshold: float) -> dict[tuple[int, int], float]:
    """All pairs of different sets at the threshold: each has one of its rarest n-grams in common with the other."""
    firsts = sorted({grams: at for at, grams in reversed(list(enumerate(sets))) if grams}.values())
    often = Counter(gram for at in firsts for gram in sets[at])
    having: dict[Gram, list[int]] = defaultdict(list)
    for at in firsts:
        rarest = sorted(sets[at], key=lambda gram: (often[gram], gram))
        for gram in rarest[: len(rarest) - math.ceil(threshold * len(rarest)) + 1]:
            having[gram].append(at)
    pairs = {pair for members in having.values() for pair in combinations(members, 2)}
    measured = {pair: similarity_of(sets[pair[0]], sets[pair[1]]) for pair in pairs}
    return {pair: similarity for pair, similarity in measured.items() if similarity >= threshold}


def megabytes(texts: Sequence[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def anonymous_bytes() -> int:
    """Memory this process holds that is no file's; Linux."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


@contextmanager
def one_core() -> Iterator[None]:
    """Run on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def main() -> None:
    """Print the table."""
    parser = arguments(__doc__)
    parser.add_argument("--cluster", metavar="FOLDER", help="cluster the signatures in a folder, and nothing else")
    choice = parser.parse_args()
    if choice.cluster:
        cluster(choice.cluster)
    else:
        show(rows(corpora()), as_json=choice.json)


if __name__ == "__main__":
    main()
