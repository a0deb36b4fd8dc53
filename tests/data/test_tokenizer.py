from __future__ import annotations

import gzip
import itertools
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.data import bpe, words
from consortium.data.sample import generate
from consortium.data.tokenize import COUNTS, TOPIC, agree_on_tokenizer
from consortium.domain.bounds import FieldError
from consortium.domain.data import ArtifactClass
from consortium.domain.tokenizing import TokenizeConfig
from consortium.errors import UsageError, VerificationError

CONFIG = TokenizeConfig(vocab_size=600, min_count=3, max_word_chars=16, held_out_percent=5)


def counts_of(language: str, documents: int = 150) -> dict[str, int]:
    texts = (row["text"] for row in generate(language, documents).rows)
    return words.threshold(words.count(texts, CONFIG), CONFIG)


class Peers:
    """The far ends of a leg's gateway, as one site sees them: what they sent, and what they agreed to."""

    def __init__(self, received: dict[str, bytes], digests: dict[str, str]) -> None:
        self.received, self.digests = received, digests
        self.sent: list[tuple[str, str, bytes]] = []

    def send(
        self, artifact_class: Any, name: str, data: bytes, *, round: int = 0, recipients: Iterable[str] | None = None
    ) -> None:
        self.sent.append((ArtifactClass(artifact_class).value, name, data))

    def wait_for(self, name: str, round: int, senders: Iterable[str], timeout_s: float) -> dict[str, bytes]:
        assert name == COUNTS
        return {sender: self.received[sender] for sender in senders}

    def wait_agreement(self, topic: str, digest: str, timeout_s: float) -> None:
        assert topic == TOPIC
        differ = [site for site, other in self.digests.items() if other not in ("", digest)]
        if differ:
            raise VerificationError(f"{differ} hold another {topic}")
        self.digests["own"] = digest


def test_a_word_keeps_the_space_before_it_and_nothing_is_lost() -> None:
    text = "L'État  de_droit, § 12a:\n\n été\t"
    found = words.WORD.findall(text)
    assert "".join(found) == text
    assert " été" in found
    assert " " in found


def test_rare_and_long_words_stay_at_home() -> None:
    texts = ["rare " + "often most " * 2, "x" * 17 + " rare often" + " most" * 7, "x" * 17]
    assert words.threshold(words.count(texts, CONFIG), CONFIG) == {" most": 9, " often": 3}


def test_what_one_document_repeats_stays_at_home_and_does_not_decide() -> None:
    texts = ["Dupont " * 50 + "loi " * 300, "la loi", "une loi"]
    config = replace(CONFIG, max_per_document=100)
    tally = words.count(texts, config)
    assert (tally.times[" Dupont"], tally.times[" loi"], tally.documents[" loi"]) == (49, 102, 3)
    assert words.threshold(tally, config) == {" loi": 102}
    tally.documents[" Dupont"] = 2
    assert " Dupont" in words.threshold(tally, config)


@pytest.mark.parametrize("loose", [{"min_count": 2}, {"min_documents": 1}, {"max_word_chars": 65}])
def test_no_job_makes_a_site_tell_of_single_documents(loose: dict[str, int]) -> None:
    with pytest.raises(FieldError, match=f"{next(iter(loose))} must be "):
        replace(CONFIG, **loose)


def test_counts_do_not_depend_on_who_counted_what() -> None:
    texts = [row["text"] * 40 for row in generate("fr", 60).rows]
    whole, parts = words.count(texts, CONFIG), words.Tally()
    for start in (40, 7, 0):
        parts.add(words.count(texts[start : {0: 7, 7: 40, 40: None}[start]], CONFIG))
    assert words.threshold(parts, CONFIG) == words.threshold(whole, CONFIG)


def test_counts_survive_packing_to_the_byte() -> None:
    counts = {"été": 5, "\n\n": 4, " ": 3}
    assert words.unpack(words.pack(counts), "fr-1", CONFIG) == counts
    assert words.pack(counts) == words.pack(dict(reversed(counts.items())))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not gzip",
        words.pack({"rare": 2}),
        words.pack({"x" * 17: 5}),
        words.pack({"": 5}),
        words.pack({"to be or not": 5}),
        words.pack({"<|endoftext|>": 5}),
        words.pack({"abc123": 5}),
        words.pack({"f": 5.5}),
        words.pack({"f": "x" * 1000}),
        words.pack({"most": words.MAX_COUNT + 1}),
        words.pack({"most": 10**400}),
        words.pack({"cut": 5})[:-9],
        words.pack({"two": 5}) * 2,
        gzip.compress(rb'{"\ud800": 5}', mtime=0),
        gzip.compress(b"[" * 100_000, mtime=0),
        gzip.compress(b'{"long": ' + b"9" * 5000 + b"}", mtime=0),
        gzip.compress(b" " * 12_000_000 + b"{}", mtime=0),
    ],
)
def test_counts_that_must_not_have_been_sent_are_refused(data: bytes) -> None:
    with pytest.raises(VerificationError, match="de-1"):
        words.unpack(data, "de-1", CONFIG)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_every_word_that_is_counted_may_be_sent(text: str) -> None:
    config = replace(CONFIG, max_word_chars=64)
    counts = dict.fromkeys(words.WORD.findall(text), 3)
    assert words.unpack(words.pack(counts), "de-1", config) == counts


def test_no_more_of_a_peers_counts_is_unpacked_than_may_be_sent() -> None:
    bomb = gzip.compress(b" " * (1 << 28), compresslevel=1)
    tracemalloc.start()
    with pytest.raises(VerificationError, match="de-1"):
        words.unpack(bomb, "de-1", CONFIG)
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()


def test_the_most_that_may_be_sent_is_read() -> None:
    blank = itertools.islice(itertools.product("\x1c\x1d\x1e\x1f", repeat=16), words.MAX_WORDS)
    most = {"".join(signs): words.MAX_COUNT for signs in blank}
    assert words.unpack(words.pack(most), "de-1", CONFIG) == most
    tally = words.Tally()
    tally.times["of"], tally.documents["of"] = 10**12, 10**9
    assert words.threshold(tally, CONFIG) == {"of": words.MAX_COUNT}


def test_merging_does_not_depend_on_the_order_of_sites() -> None:
    one, two = {"a": 1, "b": 2}, {"b": 3, "c": 4}
    assert (
        words.merge({"fr-1": one, "de-1": two}) == words.merge({"de-1": two, "fr-1": one}) == {"a": 1, "b": 5, "c": 4}
    )


def test_the_tokenizer_gives_back_every_text() -> None:
    tokenizer = bpe.load(bpe.train(counts_of("fr"), 500))
    assert tokenizer.get_vocab_size() == 500
    for text in ("La décision est notifiée.", "Ж 漢字 🙂 \x00", ""):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.token_to_id(bpe.EOS) == bpe.EOS_ID


def test_the_tokenizer_is_the_same_in_other_processes_with_other_threads_and_hash_seeds() -> None:
    program = (
        "from consortium.data import bpe, words; from consortium.data.sample import generate\n"
        "from consortium.domain.tokenizing import TokenizeConfig\n"
        "config = TokenizeConfig(vocab_size=600, min_count=3, max_word_chars=16, held_out_percent=5)\n"
        "counts = words.count((row['text'] for row in generate('de', 150).rows), config)\n"
        "print(bpe.tokenizer_digest(bpe.train(words.threshold(counts, config), 600)))"
    )
    digests = set()
    for seed, threads in (("1", "1"), ("2", "4")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        digests.add(
            subprocess.run([sys.executable, "-c", program], env=environment, check=True, stdout=-1).stdout.strip()
        )
    assert digests == {bpe.tokenizer_digest(bpe.train(counts_of("de"), 600)).encode()}


def test_scaled_counts_keep_frequent_words_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "PLAYED_WORDS", 5_000)
    tokenizer = bpe.load(bpe.train({" gouvernement": 1_000_000, " autorité": 500_000, " qzx": 5}, 400))
    assert tokenizer.encode(" gouvernement").tokens == ["Ġgouvernement"]


def test_no_counts_and_too_small_a_vocabulary_are_said() -> None:
    with pytest.raises(UsageError, match="no word is frequent"):
        bpe.train({}, 500)
    with pytest.raises(UsageError, match="at least 257"):
        bpe.train({"a": 5}, 200)


def test_all_sites_make_one_tokenizer_from_what_each_sent() -> None:
    own = {site: counts_of(language) for site, language in (("fr-1", "fr"), ("de-1", "de"), ("uy-1", "es"))}
    packed = {site: words.pack(counts) for site, counts in own.items()}
    made = set()
    for site in own:
        peers = Peers({other: data for other, data in packed.items() if other != site}, {})
        made.add(agree_on_tokenizer(own[site], site, tuple(own), peers, CONFIG))
        assert peers.sent == [("statistic", COUNTS, packed[site])]
    assert len(made) == 1


def test_a_site_with_another_tokenizer_stops_the_job() -> None:
    peers = Peers({"de-1": words.pack({" und": 9})}, {"de-1": "sha256:other"})
    with pytest.raises(VerificationError, match="hold another tokenizer"):
        agree_on_tokenizer({" et": 7}, "fr-1", ("fr-1", "de-1"), peers, CONFIG)


def test_the_held_out_split_is_stable_and_about_as_large_as_asked() -> None:
    texts = [row["text"] for row in generate("fr", 2000).rows]
    held = [words.is_held_out(text, 10) for text in texts]
    assert 0.06 < sum(held) / len(held) < 0.14
    assert held == [words.is_held_out(text, 10) for text in texts]
    assert not any(words.is_held_out(text, 0) for text in texts)
