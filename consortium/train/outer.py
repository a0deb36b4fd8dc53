"""The outer state and its step, in numpy: what must come out bit for bit the same at every site.

An outer state is one flat fp32 vector: all parameters, little-endian, in order of their names, whatever their sharding
or number of workers. Every operation below is one numpy ufunc on fp32 arrays: one IEEE 754 rounding per element, which
no SIMD width changes. Multiply and add stay apart, because fused kernels round once where others round twice. Where the
vector lies in slices with several ranks (`consortium.train.sharded`), each works on its own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import numpy as np
import numpy.typing as npt

from consortium.domain.training import Contribution
from consortium.errors import VerificationError
from consortium.train.sharded import Sharded, by_slices, whole
from consortium.train.sharded import Vector as Vector
from consortium.train.spread import spread

_WIRE = np.dtype("<f4")
_TILE = 1 << 18
"""Elements at a time: what is computed on the way stays in the cache. Changes no bit of what sites must agree on. A
multiple of every block and chunk of the codes.
"""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each parameter lies in the flat vector: names in order, and their shapes."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, shapes: Mapping[str, Iterable[int]]) -> Layout:
        """Return the layout of parameters with these shapes."""
        names = tuple(sorted(shapes))
        return cls(names, tuple(tuple(int(n) for n in shapes[name]) for name in names))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each parameter."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """Elements of all parameters."""
        return sum(self.sizes)

    def split(self, vector: Vector) -> dict[str, Vector]:
        """Return views of `vector`, one per parameter, in its shape."""
        ends = np.cumsum(self.sizes)
        return {
            name: vector[end - size : end].reshape(shape)
            for name, shape, size, end in zip(self.names, self.shapes, self.sizes, ends, strict=True)
        }

    def join(self, arrays: Mapping[str, npt.NDArray[np.float32]]) -> Vector:
        """Return the parameters as one flat vector."""
        return np.concatenate([np.asarray(arrays[name], dtype=np.float32).reshape(-1) for name in self.names])


@dataclass(frozen=True, slots=True)
class Moments:
    """The inner optimiser's state: its vectors by name, and its step count (`consortium.train.optim`).

    Each vector holds one kind of state of all parameters that have it, in the layout's order: AdamW's `exp_avg` and
    `exp_avg_sq`, Muon's `momentum_buffer`.
    """

    vectors: Mapping[str, Vector]
    steps: int


def to_bytes(vector: Vector) -> bytes:
    """Return a vector, whole, as it is hashed, sent and stored: fp32 little-endian."""
    return whole(vector).astype(_WIRE, copy=False).tobytes()


def from_bytes(data: bytes | memoryview, size: int, *, what: str) -> Vector:
    """Return the vector of `size` elements in `data`, not to be written to: it shares its memory where it can.

    Raises VerificationError where the length differs.
    """
    if len(data) != size * _WIRE.itemsize:
        raise VerificationError(f"{what} has {len(data)} bytes, the model needs {size * _WIRE.itemsize}")
    return np.frombuffer(data, dtype=_WIRE).astype(np.float32, copy=False)


def vector_digest(vector: Vector) -> str:
    """Return the digest of `to_bytes(vector)`, without a copy of it."""
    hashed = hashlib.sha256()
    for piece in vector.holders.pieces(vector) if isinstance(vector, Sharded) else (vector,):
        hashed.update(np.ascontiguousarray(piece, dtype=_WIRE).data)
    return "sha256:" + hashed.hexdigest()


@by_slices
def zeros_like(vector: Vector) -> Vector:
    """Return zeros, as many as a vector has elements and where it has them."""
    return np.zeros_like(vector)


def norm_of(vector: Vector) -> float:
    """Return the L2 norm, summed in fp64. Sites may differ in its last bits; nothing that must agree rests on it."""
    return math.sqrt(dot(vector, vector))


def dot(one: Vector, other: Vector) -> float:
    """Return the inner product of two vectors, summed in fp64."""
    if isinstance(one, Sharded):
        return sum(chain.from_iterable(one.holders.map(_products, one, other)), 0.0)
    return sum(_products(one, other), 0.0)


def _products(one: Vector, other: Vector) -> list[float]:
    """Return the inner product by tile."""
    same = one is other

    def of(part: slice) -> float:
        wide = one[part].astype(np.float64)
        return float(np.sum(wide * (wide if same else other[part].astype(np.float64))))

    return spread(of, tiles(len(one)))


def cosine_of(one: Vector, other: Vector) -> float:
    """Return the cosine of the angle between two vectors, summed in fp64; 1 where either is zero."""
    scale = norm_of(one) * norm_of(other)
    return dot(one, other) / scale if scale > 0 else 1.0


def finite(vector: Vector) -> bool:
    """Return whether no element is a NaN or infinity."""
    if isinstance(vector, Sharded):
        return all(vector.holders.map(finite, vector))
    return all(spread(lambda part: bool(np.isfinite(vector[part]).all()), tiles(len(vector))))


@by_slices
def difference(one: Vector, other: Vector) -> Vector:
    """Return `one` less `other`."""
    result = np.empty_like(one)
    spread(lambda part: np.subtract(one[part], other[part], out=result[part]), tiles(len(one)))
    return result


def tiles(size: int) -> Iterator[slice]:
    """Yield the parts in which a vector is worked through: what is computed on the way has the size of one of them."""
    for start in range(0, size, _TILE):
        yield slice(start, min(size, start + _TILE))


def aggregate(contributions: Iterable[Contribution], vectors: Mapping[str, Vector], size: int) -> Vector:
    """Return the weighted sum of the sites' pseudo-gradients, added in site order from zero.

    Weight and clip scale are rounded to fp32 and applied one after the other.
    """
    if not vectors:
        return np.zeros(size, dtype=np.float32)
    return _aggregate(sorted(contributions, key=lambda part: part.site), vectors)


@by_slices
def _aggregate(contributions: Sequence[Contribution], vectors: Mapping[str, Vector]) -> Vector:
    total = np.zeros(len(next(iter(vectors.values()))), dtype=np.float32)
    for contribution in contributions:
        vector = vectors[contribution.site]
        weight, clip = (np.float32(float.fromhex(value)) for value in (contribution.weight, contribution.clip))
        spread(partial(_add_scaled, total, vector, weight, clip), tiles(len(total)))
    return total


def _add_scaled(total: Vector, vector: Vector, weight: np.float32, clip: np.float32, part: slice) -> None:
    scaled = np.multiply(np.multiply(vector[part], weight), clip)
    np.add(total[part], scaled, out=total[part])


@by_slices
def nesterov(
    outer: Vector, momentum: Vector, gradient: Vector, *, lr: float, momentum_decay: float
) -> tuple[Vector, Vector]:
    """Return the next outer state and momentum (the form of `torch.optim.SGD(nesterov=True)`, dampening 0).

    m' = mu * m + g;  theta' = theta - lr * (g + mu * m').
    """
    mu, rate = np.float32(momentum_decay), np.float32(lr)
    new_outer, new_momentum = np.empty_like(outer), np.empty_like(momentum)

    def step(part: slice) -> None:
        speed = np.add(np.multiply(mu, momentum[part]), gradient[part], out=new_momentum[part])
        direction = np.add(gradient[part], np.multiply(mu, speed))
        np.subtract(outer[part], np.multiply(rate, direction), out=new_outer[part])

    spread(step, tiles(len(outer)))
    return new_outer, new_momentum
