from __future__ import annotations

import base64
import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.domain.protocol import Pinned
from consortium.errors import VerificationError
from consortium.keys.signing import SigningKey
from consortium.ledger import tree
from consortium.ledger.notes import key_id, open_note, sign_note
from consortium.ledger.proofs import (
    advance,
    checkpoint_text,
    leaf_data,
    parse_checkpoint,
    verify_consistency,
    verify_inclusion,
    verify_latest,
)

# The eight inputs and roots that Certificate Transparency's own test suites use for RFC 6962.
CT_INPUTS = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
CT_ROOT_8 = "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def data(count: int) -> list[bytes]:
    return [hashlib.sha256(str(i).encode()).digest() for i in range(count)]


class Grown:
    """A tree grown in batches, as the log grows it."""

    def __init__(self, batches: list[int]) -> None:
        self.hashes: dict[tuple[int, int], bytes] = {}
        self.leaves, size = data(sum(batches)), 0
        for batch in batches:
            fresh = [tree.hash_leaf(leaf) for leaf in self.leaves[size : size + batch]]
            for level, index, value in tree.grow(self.get, size, fresh):
                assert (level, index) not in self.hashes
                self.hashes[level, index] = value
            size += batch
        self.size = size

    def get(self, level: int, index: int) -> bytes:
        return self.hashes[level, index]

    def root(self, size: int) -> str:
        return tree.root(self.get, size).hex()

    def inclusion(self, index: int, size: int) -> list[str]:
        return [h.hex() for h in tree.inclusion(self.get, index, size)]

    def consistency(self, old: int, new: int) -> list[str]:
        return [h.hex() for h in tree.consistency(self.get, old, new)]


def flip(text: str, at: int) -> str:
    at %= len(text)
    return text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]


batches = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def test_the_root_is_certificate_transparencys() -> None:
    hashes: dict[tuple[int, int], bytes] = {}
    leaves = [tree.hash_leaf(bytes.fromhex(text)) for text in CT_INPUTS]
    for level, index, value in tree.grow(lambda level, index: hashes[level, index], 0, leaves):
        hashes[level, index] = value
    assert tree.root(lambda level, index: hashes[level, index], 8).hex() == CT_ROOT_8
    assert tree.EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@given(batches)
def test_roots_agree_with_the_naive_tree_at_every_size(sizes: list[int]) -> None:
    grown = Grown(sizes)
    for size in range(grown.size + 1):
        assert grown.root(size) == naive_root(grown.leaves[:size]).hex()


@given(batches, st.data())
def test_every_inclusion_proof_holds_and_no_other_leaf_index_or_root_does(
    sizes: list[int], draw: st.DataObject
) -> None:
    grown = Grown(sizes)
    size = draw.draw(st.integers(1, grown.size))
    index = draw.draw(st.integers(0, size - 1))
    proof, root = grown.inclusion(index, size), grown.root(size)
    verify_inclusion(grown.leaves[index], index, size, proof, root)
    bad = [
        (b"\0" * 32, index, size, proof, root),
        (grown.leaves[index], index, size, proof, flip(root, index)),
        (grown.leaves[index], index, size, [*proof, "00" * 32], root),
        (grown.leaves[index], size, size, proof, root),
        (grown.leaves[index], -1, size, proof, root),
    ]
    if proof:
        step = draw.draw(st.integers(0, len(proof) - 1))
        bad += [
            (grown.leaves[index], index, size, proof[:-1], root),
            (grown.leaves[index], index, size, [*proof[:step], flip(proof[step], index), *proof[step + 1 :]], root),
            (grown.leaves[index], index ^ 1, size, proof, root),
        ]
    for case in bad:
        with pytest.raises(VerificationError):
            verify_inclusion(*case)


@given(batches, st.data())
def test_every_consistency_proof_holds_and_no_changed_one_does(sizes: list[int], draw: st.DataObject) -> None:
    grown = Grown(sizes)
    new = draw.draw(st.integers(1, grown.size))
    old = draw.draw(st.integers(0, new))
    proof, roots = grown.consistency(old, new), (grown.root(old), grown.root(new))
    verify_consistency(old, roots[0], new, roots[1], proof)
    bad = [(old, roots[0], new, roots[1], [*proof, "00" * 32]), (old, flip(roots[0], new), new, roots[1], proof)]
    if old:
        bad.append((old, roots[0], new, flip(roots[1], old), proof))
        bad.append((new + 1, roots[1], new, roots[1], proof))
    if proof:
        step = draw.draw(st.integers(0, len(proof) - 1))
        bad.append((old, roots[0], new, roots[1], proof[:-1]))
        bad.append((old, roots[0], new, roots[1], [*proof[:step], flip(proof[step], old), *proof[step + 1 :]]))
    for case in bad:
        with pytest.raises(VerificationError):
            verify_consistency(*case)


@given(batches, st.data())
def test_the_latest_leaves_are_those_of_the_root_and_no_others_are(sizes: list[int], draw: st.DataObject) -> None:
    grown = Grown(sizes)
    size = draw.draw(st.integers(1, grown.size))
    start = draw.draw(st.integers(0, size - 1))
    leaves, proof, root = grown.leaves[start:size], grown.inclusion(start, size), grown.root(size)
    verify_latest(leaves, start, size, proof, root)
    at = draw.draw(st.integers(0, len(leaves) - 1))
    for other in ([*leaves[:at], bytes(32), *leaves[at + 1 :]], leaves[1:], [*leaves, leaves[-1]], leaves[::-1]):
        if other != leaves:
            with pytest.raises(VerificationError):
                verify_latest(other, start, size, proof, root)
    with pytest.raises(VerificationError):
        verify_latest(leaves, start, size, proof, "00" * 32)
    with pytest.raises(VerificationError):
        verify_latest([], 0, 0, [], root)
    verify_latest([], 0, 0, [], tree.EMPTY_ROOT.hex())


def test_another_history_is_no_extension() -> None:
    grown, size = Grown([20]), 13
    other = naive_root([*grown.leaves[:5], b"x" * 32, *grown.leaves[6:size]]).hex()
    with pytest.raises(VerificationError, match="does not extend"):
        verify_consistency(size, other, 20, grown.root(20), grown.consistency(size, 20))


def test_a_proof_is_small() -> None:
    grown = Grown([1000])
    assert max(len(grown.inclusion(i, 1000)) for i in range(0, 1000, 37)) <= 10


class TestNotes:
    # The example of Go's golang.org/x/mod/sumdb/note, which defined the format.
    NAME = "PeterNeumann"
    VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    NOTE = (
        "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n\n"
        "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
    )

    def public(self) -> str:
        raw = base64.b64decode(self.VKEY.rsplit("+", 1)[1])
        return base64.b64encode(raw[1:]).decode()

    def test_opens_a_note_that_go_signed(self) -> None:
        assert key_id(self.NAME, self.public()).hex() == self.VKEY.split("+")[1]
        assert open_note(self.NOTE, self.NAME, self.public()).startswith("If you think")

    @pytest.mark.parametrize(
        "change",
        [
            lambda note: note.replace("answer", "anwser"),
            lambda note: note.replace("x08go", "x18go"),
            lambda note: note.replace("nAM=", "nAN="),
            lambda note: note.replace("— Peter", "- Peter"),
            lambda note: note[:-1],
            lambda note: note.replace("\n\n", "\n"),
            lambda note: note.replace("PeterNeumann", "PeterNewmann"),
            lambda note: "",
        ],
    )
    def test_any_change_shows(self, change) -> None:
        with pytest.raises(VerificationError):
            open_note(change(self.NOTE), self.NAME, self.public())

    def test_witness_signatures_beside_ours_are_left_alone(self) -> None:
        key = SigningKey.generate()
        note = sign_note("text\n", "log", key) + "— witness.example AAAAAAAA\n"
        assert open_note(note, "log", key.public) == "text\n"

    @pytest.mark.parametrize("name", ["", "a b", "a+b"])
    def test_bad_names(self, name: str) -> None:
        with pytest.raises(ValueError, match="log's name"):
            sign_note("x\n", name, SigningKey.generate())


class TestCheckpoints:
    @pytest.fixture
    def key(self) -> SigningKey:
        return SigningKey.generate()

    def note(self, key: SigningKey, grown: Grown, size: int) -> str:
        return sign_note(checkpoint_text("log", size, bytes.fromhex(grown.root(size))), "log", key)

    def test_parsed_and_foreign_ones_refused(self, key: SigningKey) -> None:
        grown = Grown([5])
        note = self.note(key, grown, 5)
        assert parse_checkpoint(note, "log", key.public).root == grown.root(5)
        for name, public in (("log", SigningKey.generate().public), ("other", key.public)):
            with pytest.raises(VerificationError):
                parse_checkpoint(note, name, public)

    @pytest.mark.parametrize(
        "text", ["other\n1\nAAAA\n", "log\n01\nAAAA\n", "log\n-1\nAAAA\n", "log\n1\nAAAA\n", "log\n"]
    )
    def test_signed_nonsense_is_refused(self, key: SigningKey, text: str) -> None:
        with pytest.raises(VerificationError):
            parse_checkpoint(sign_note(text, "log", key), "log", key.public)

    def test_a_pin_advances_and_notices_a_rewritten_or_restored_log(self, key: SigningKey) -> None:
        grown, other = Grown([9]), Grown([9])
        pin = advance(None, self.note(key, grown, 4), [], "log", key.public)
        assert pin == Pinned(size=4, root=grown.root(4))
        later = advance(pin, self.note(key, grown, 9), grown.consistency(4, 9), "log", key.public)
        assert advance(later, self.note(key, grown, 9), [], "log", key.public) == later
        with pytest.raises(VerificationError, match="shrank from 9 to 4"):
            advance(later, self.note(key, grown, 4), [], "log", key.public)
        other.hashes = {k: hashlib.sha256(v).digest() for k, v in other.hashes.items()}
        with pytest.raises(VerificationError, match="does not extend"):
            advance(later, self.note(key, other, 9), [], "log", key.public)
        with pytest.raises(VerificationError, match="does not extend"):
            advance(replace(pin, root="00" * 32), self.note(key, grown, 9), grown.consistency(4, 9), "log", key.public)


def test_a_leaf_is_the_hash_of_salt_and_canonical_payload() -> None:
    salt = "ab" * 32
    assert leaf_data(salt, {"b": 1, "a": 2}) == hashlib.sha256(bytes.fromhex(salt) + b'{"a":2,"b":1}').digest()
    with pytest.raises(VerificationError, match="salt"):
        leaf_data("AB" * 32, {})
