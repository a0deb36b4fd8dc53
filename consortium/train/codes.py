"""Codes: a pseudo-gradient in fewer bytes, and the error feedback that makes up for what they drop.

    fp32   4 bytes a parameter, bare: exactly the bytes of `outer.to_bytes`
    bf16   2 bytes: rounded to nearest, ties to even
    int8   1.016 bytes: blocks of 256, scale = absmax / 127, rounded to nearest even
    int4   0.53 bytes: blocks of 128, scale = absmax / 7, likewise
    topk   0.01 to 0.04 bytes: of every 4,096 the `topk` largest, two bits each (`consortium.train.sparse`)

All but fp32 drop something. What round k drops is its *residual*, which the site keeps and adds to round k+1's vector
(error feedback, https://arxiv.org/abs/1901.09847): e = feedback * residual + vector; send d = decode(encode(e)); the
new residual is e - d. With feedback 1, the sum of what was decoded plus the last residual is the sum of what was given,
up to one fp32 rounding per round and operation. Rounding is deterministic: the same input gives the same bytes after a
crash. No rounding needs to be unbiased, because the residual returns every bias.

Bytes are little-endian: a header of 16 (magic `CPGR`, version, code, parameter, number of elements), then the payload,
whose length follows from the header. Every operation is one IEEE operation on one element, or an integer's, so SIMD
width changes no bit. `decode` checks length and header against what the caller expects before it allocates anything;
what it returns is finite, or all NaN where the sender said that its vector was not finite.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import chain

import numpy as np

from consortium.domain.data import ArtifactClass
from consortium.domain.pretraining import CodeName, OuterConfig
from consortium.train import sparse
from consortium.train.outer import Vector, finite, from_bytes, tiles, to_bytes
from consortium.train.sharded import Each, Holding, Ranges, Sharded, as_vector, by_slices, cut, lengths, placed
from consortium.train.sparse import Bytes, refuse
from consortium.train.spread import spread

MAGIC, VERSION = b"CPGR", 1
_HEADER = struct.Struct("<4sBBHQ")
_NUMBERS: dict[CodeName, int] = {"fp32": 1, "bf16": 2, "int8": 3, "int4": 4, "topk": 5}
_NOT_FINITE = 0
"""Code of a header without payload: the sender's vector holds a NaN or infinity."""
_BLOCKS: dict[CodeName, int] = {"int8": 256, "int4": 128}
_LEVELS: dict[CodeName, int] = {"int8": 127, "int4": 7}
_TINY = np.float32(2.0**-100)
"""A block whose largest magnitude is below this is sent as zeros: no denormal scales, which some processors flush."""
_LARGEST_BF16 = np.uint32(0x7F7F)


@dataclass(frozen=True, slots=True)
class Encoded:
    """What is sent, and what the site keeps for the next round: None where nothing was dropped."""

    data: bytes
    residual: Vector | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """One code with its parameters; the same at every site of a job."""

    name: CodeName = "fp32"
    topk: int = 64
    """Of 4,096, for `topk` only: 16, 32, 64, 128 or 256."""
    feedback: float = 1.0
    """Share of the residual that is carried on, 0 to 1."""
    state: int = 0
    """Elements of the inner optimiser's state that cross behind the vector, in bf16 (`consortium.train.shared`)."""

    def __post_init__(self) -> None:
        if self.name not in _NUMBERS:
            raise ValueError(f"code must be one of {', '.join(_NUMBERS)}, got {self.name}")
        if self.topk not in sparse.COUNTS:
            raise ValueError(f"topk must be one of {', '.join(map(str, sparse.COUNTS))}, got {self.topk}")
        if not 0 <= self.feedback <= 1:
            raise ValueError(f"feedback must be 0 to 1, got {self.feedback}")

    @classmethod
    def of(cls, outer: OuterConfig, state: int = 0) -> Code:
        """Return the code that a job's outer loop names; `state` counts what it shares of the inner optimiser's."""
        shared = state if outer.share == "optimizer" else 0
        return cls(name=outer.code, topk=outer.topk, feedback=outer.feedback, state=shared)

    @property
    def kind(self) -> ArtifactClass:
        """What encoded bytes are, for border rules."""
        return ArtifactClass.OPTIMIZER_STATE if self.state else ArtifactClass.PSEUDO_GRADIENT

    def bytes_for(self, size: int) -> int:
        """Return the bytes of an encoded vector of `size` elements, with the state behind it."""
        return self._alone(size) + (_HEADER.size + 2 * self.state if self.state else 0)

    def _alone(self, size: int) -> int:
        if self.name == "fp32":
            return 4 * size
        if self.name == "topk":
            return _HEADER.size + sparse.bytes_for(size, self.topk)
        if self.name == "bf16":
            return _HEADER.size + 2 * size
        values = size if self.name == "int8" else -(-size // 2)
        return _HEADER.size + 4 * -(-size // _BLOCKS[self.name]) + values

    def encode(self, vector: Vector, residual: Vector | None = None, state: Vector | None = None) -> Encoded:
        """Return the bytes that stand for `vector` plus the carried `residual`, and the new residual.

        A vector that is not finite is encoded as just that, and the residual is given back as it was. What bf16 drops
        of the `state` is not carried: the next one holds it anew.
        """
        if not self.state:
            return self._encode(vector, residual)
        if state is None or len(state) != self.state:
            raise ValueError(f"the code takes a state of {self.state} elements")
        if not finite(state):
            return Encoded(_not_finite(len(vector)), residual)
        made = self._encode(vector, residual)
        if made.data == _not_finite(len(vector)):
            return made
        return Encoded(made.data + BF16.encode(state).data, made.residual)

    def _encode(self, vector: Vector, residual: Vector | None) -> Encoded:
        if self.name == "fp32":
            return Encoded(to_bytes(vector), None)
        carried = _carried(vector, residual, self.feedback)
        if not finite(carried):
            return Encoded(_not_finite(len(carried)), residual)
        out = np.empty(self._alone(len(carried)), dtype=np.uint8)
        out[: _HEADER.size] = np.frombuffer(self._header(len(carried)), dtype=np.uint8)
        payload = out[_HEADER.size :]
        if isinstance(carried, Sharded):
            self._fill_from_slices(carried, payload)
        else:
            self.fill(carried, payload)
        return Encoded(out.tobytes(), carried)

    def fill(self, carried: Vector, payload: Bytes) -> None:
        """Write the payload of a finite vector, which becomes what is left of it."""
        if self.name == "topk":
            sparse.encode(carried, self.topk, payload)
        elif self.name == "bf16":
            _encode_bf16(carried, payload)
        else:
            _encode_int(carried, self.name, payload)

    def decode(self, data: bytes | memoryview, size: int, holders: Holding | None = None) -> Vector:
        """Return the vector of `size` elements that `data` stands for, in slices where there are who hold them.

        One of fp32 in one piece shares the memory of `data`. Raises VerificationError where the bytes are not what
        `encode` makes, those of the state included.
        """
        if (self.state or self.name != "fp32") and data == _not_finite(size):
            return _no_numbers(size) if holders is None else as_vector(holders.map(_no_numbers, _sizes(size, holders)))
        if self.state:
            self.state_in(data, size)
            data = memoryview(data)[: self._alone(size)]
        if self.name == "fp32":
            return placed(from_bytes(data, size, what="the vector"), holders)
        if len(data) != self._alone(size):
            refuse(f"{len(data)} bytes, {self.name} of {size} elements has {self._alone(size)}")
        if data[: _HEADER.size] != self._header(size):
            refuse(f"the header is {data[: _HEADER.size].hex()}, not {self._header(size).hex()}")
        payload = np.frombuffer(data, dtype=np.uint8, offset=_HEADER.size)
        if holders is None:
            return self.read(payload, size)
        of_each = holders.place(payload, self._planes(size, holders.world))
        return as_vector(holders.map(Code.read, self, of_each, _sizes(size, holders)))

    def read(self, payload: Bytes, size: int) -> Vector:
        """Return the vector that a payload of the right length stands for. Raises VerificationError."""
        if self.name == "topk":
            return sparse.decode(payload, size, self.topk)
        if self.name == "bf16":
            return _decode_bf16(payload)
        return _decode_int(payload, self.name, size)

    def _fill_from_slices(self, carried: Sharded, payload: Bytes) -> None:
        """Put the payloads of slices together: slices begin with blocks, so these are the same bytes."""
        holders, places = carried.holders, self._planes(len(carried), carried.holders.world)
        made = holders.map(_filled, self, carried, Each(lengths(places)))
        target = chain.from_iterable(places)
        start, stop = next(target, (0, 0))
        for piece in holders.pieces(made):
            done = 0
            while done < len(piece):
                count = min(stop - start, len(piece) - done)
                payload[start : start + count] = piece[done : done + count]
                start, done = start + count, done + count
                if start == stop:
                    start, stop = next(target, (0, 0))

    def _planes(self, size: int, world: int) -> tuple[Ranges, ...]:
        """Return by rank where the payload of its slice lies in that of a vector of `size` elements."""
        found: list[list[tuple[int, int]]] = [[] for _ in range(world)]
        begin = 0
        for elements, width in self._shape():
            for ranges, one in zip(found, cut(size, world), strict=True):
                ranges += [
                    (begin + first // elements * width, begin + -(-last // elements) * width) for first, last in one
                ]
            begin += -(-size // elements) * width
        return tuple(tuple(ranges) for ranges in found)

    def _shape(self) -> tuple[tuple[int, int], ...]:
        """Return by plane of the payload how many elements share how many bytes."""
        if self.name == "topk":
            return tuple((sparse.CHUNK, width) for width in sparse.widths(self.topk))
        if self.name == "bf16":
            return ((1, 2),)
        return (_BLOCKS[self.name], 4), ((1, 1) if self.name == "int8" else (2, 1))

    def state_in(self, data: bytes | memoryview, size: int) -> Vector:
        """Return the state that crossed behind a vector of `size` elements. Raises as `decode` does."""
        if len(data) != self.bytes_for(size):
            refuse(f"{len(data)} bytes, {self.name} of {size} elements and a state has {self.bytes_for(size)}")
        return BF16.decode(memoryview(data)[self._alone(size) :], self.state)

    def _header(self, size: int) -> bytes:
        parameter = self.topk if self.name == "topk" else _BLOCKS.get(self.name, 0)
        return _HEADER.pack(MAGIC, VERSION, _NUMBERS[self.name], parameter, size)


def _not_finite(size: int) -> bytes:
    return _HEADER.pack(MAGIC, VERSION, _NOT_FINITE, 0, size)


FP32 = Code()
BF16 = Code(name="bf16")


@by_slices
def _carried(vector: Vector, residual: Vector | None, feedback: float) -> Vector:
    """Return what is to be encoded, in memory of its own."""
    if residual is None:
        return np.array(vector, dtype=np.float32)
    carried = np.multiply(residual, np.float32(feedback))
    np.add(carried, vector, out=carried)
    return carried


def _no_numbers(size: int) -> Vector:
    return np.full(size, np.nan, dtype=np.float32)


def _sizes(size: int, holders: Holding) -> Each:
    """Return how many elements of a vector each rank holds."""
    return Each(lengths(cut(size, holders.world)))


def _filled(code: Code, carried: Vector, count: int) -> Bytes:
    payload = np.empty(count, dtype=np.uint8)
    if len(carried):
        code.fill(carried, payload)
    return payload


# -- bf16: the upper half of an fp32 ------------------------------------------------------------------------------


def _encode_bf16(carried: Vector, out: Bytes) -> None:
    wire = out.view("<u2")

    def work(part: slice) -> None:
        bits = carried[part].view(np.uint32)
        half = sparse.to_bf16(bits)
        wire[part] = half
        carried[part] -= (half << np.uint32(16)).view(np.float32)

    spread(work, tiles(len(carried)))


def _decode_bf16(payload: Bytes) -> Vector:
    half = payload.view("<u2")
    vector = np.empty(len(half), dtype=np.float32)
    bits = vector.view(np.uint32)

    def work(part: slice) -> None:
        if int((half[part] & 0x7FFF).max()) > _LARGEST_BF16:
            refuse("a value is not finite")
        bits[part] = half[part]
        np.left_shift(bits[part], 16, out=bits[part])

    spread(work, tiles(len(half)))
    return vector


# -- integers with a scale per block ------------------------------------------------------------------------------


def _encode_int(carried: Vector, name: CodeName, out: Bytes) -> None:
    """Scales first (`<f4`), then values: int8, or two nibbles a byte, the first one low, each plus 8."""
    block, levels, count = _BLOCKS[name], np.float32(_LEVELS[name]), -(-len(carried) // _BLOCKS[name])
    scales, values = out[: 4 * count].view("<f4"), out[4 * count :]

    def work(part: slice) -> None:
        length = part.stop - part.start
        blocks = _blocks(carried[part], block)
        top = np.abs(blocks).max(axis=1)
        top[top < _TINY] = 0
        scale = np.minimum(np.divide(top, levels), _largest_scale(name))
        inverse = np.divide(levels, top, out=np.zeros_like(top), where=top > 0)
        rounded = np.multiply(blocks, inverse[:, None])
        np.rint(rounded, out=rounded)
        scales[part.start // block : part.start // block + len(scale)] = scale
        if name == "int8":
            values[part] = rounded.astype(np.int8).view(np.uint8).reshape(-1)[:length]
        else:
            pairs = (rounded.astype(np.int8).reshape(-1, 2) + np.int8(8)).view(np.uint8)
            packed = pairs[:, 0] | pairs[:, 1] << np.uint8(4)
            values[part.start // 2 : part.start // 2 + -(-length // 2)] = packed[: -(-length // 2)]
        np.multiply(rounded, scale[:, None], out=rounded)
        carried[part] -= rounded.reshape(-1)[:length]

    spread(work, tiles(len(carried)))


def _largest_scale(name: CodeName) -> np.float32:
    """Return the largest scale that is sent: the largest level times it is finite, however it rounds."""
    return np.float32(np.finfo(np.float32).max / (_LEVELS[name] + 1))


def _decode_int(payload: Bytes, name: CodeName, size: int) -> Vector:
    block, count = _BLOCKS[name], -(-size // _BLOCKS[name])
    scales, values = payload[: 4 * count].view("<f4").astype(np.float32), payload[4 * count :]
    fits = (scales == 0) | ((scales >= _TINY / 128) & (scales <= _largest_scale(name)))
    if not bool(fits.all()):
        refuse("a scale is negative, too small, too large or no number")
    vector = np.empty(size, dtype=np.float32)

    def work(part: slice) -> None:
        scale = scales[part.start // block : -(-part.stop // block)]
        levels = _int8(values[part]) if name == "int8" else _int4(values[part.start // 2 : -(-part.stop // 2)], part)
        if len(levels) == len(scale) * block:
            np.multiply(levels.reshape(-1, block), scale[:, None], out=vector[part].reshape(-1, block))
        else:
            whole = np.zeros((len(scale), block), dtype=np.float32)
            whole.reshape(-1)[: len(levels)] = levels
            vector[part] = np.multiply(whole, scale[:, None]).reshape(-1)[: len(levels)]

    spread(work, tiles(size))
    return vector


def _int8(values: Bytes) -> Vector:
    if len(values) and bool((values == 128).any()):
        refuse("a value is -128")
    return values.view(np.int8).astype(np.float32)


_NIBBLES = np.array([[(byte & 15) - 8, (byte >> 4) - 8] for byte in range(256)], dtype=np.float32)
"""The two values of each byte of int4."""


def _int4(values: Bytes, part: slice) -> Vector:
    length = part.stop - part.start
    if length % 2 and int(values[-1]) >> 4 != 8:
        refuse("a value stands after the last")
    levels = _NIBBLES[values].reshape(-1)[:length]
    if length and float(levels.min()) < -7:
        refuse("a value is -8")
    return levels


def _blocks(part: Vector, block: int) -> Vector:
    """Return `part` as rows of `block` elements; zeros fill the last one."""
    count = -(-len(part) // block)
    if len(part) == count * block:
        return part.reshape(count, block)
    whole = np.zeros(count * block, dtype=np.float32)
    whole[: len(part)] = part
    return whole.reshape(count, block)
