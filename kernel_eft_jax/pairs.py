"""Pair space: a symmetric matrix over N inputs as P = N(N+1)/2 independent numbers.

A kernel K_ab is packed over pairs p = (a, b) with a <= b. A covariance of two kernels, V_ab,cd, is then an ordinary
symmetric positive semi-definite P x P matrix in which every independent number occurs once. One table, `triples`,
carries all structure: it lists for every pair ab the places of (aa, bb, ab), so that a function of one pair of inputs
serves the whole kernel and the diagonal is no special case.
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int

A = TypeVar("A", Array, np.ndarray)  # what comes in as NumPy goes out as NumPy


def pairs(inputs: int) -> tuple[Int[np.ndarray, " P"], Int[np.ndarray, " P"]]:
    """The inputs (a, b), a <= b, of each of the P pairs, in the order 00, 01, ..., 0(N-1), 11, ..."""
    return np.triu_indices(inputs)


@cache
def pair_table(inputs: int) -> Int[np.ndarray, "N N"]:
    """The place p of the pair ab, symmetric in a and b; read-only."""
    a, b = pairs(inputs)
    table = np.empty((inputs, inputs), dtype=np.int64)
    table[a, b] = table[b, a] = np.arange(a.size)
    return _read_only(table)


@cache
def triples(inputs: int) -> Int[np.ndarray, "P 3"]:
    """The places of (aa, bb, ab) for each pair ab: the three kernel entries that a pair of inputs depends on;
    read-only."""
    (a, b), table = pairs(inputs), pair_table(inputs)
    return _read_only(np.stack([table[a, a], table[b, b], table[a, b]], axis=1))


@cache
def diagonal(inputs: int) -> Int[np.ndarray, " N"]:
    """The places of the pairs aa; read-only."""
    return _read_only(np.diagonal(pair_table(inputs)))


@cache
def off_diagonal(inputs: int) -> Int[np.ndarray, " M"]:
    """The places of the pairs ab of different inputs, M = N(N - 1)/2; read-only."""
    a, b = pairs(inputs)
    return _read_only(np.flatnonzero(a != b))


@cache
def from_diagonal_first(inputs: int) -> Int[np.ndarray, " P"]:
    """Where each pair stands in `diagonal` followed by `off_diagonal`; read-only."""
    return _read_only(np.argsort(np.concatenate([diagonal(inputs), off_diagonal(inputs)])))


def _read_only(places):
    places.flags.writeable = False
    return places


def pair_count(inputs: int) -> int:
    """P = N(N+1)/2 from N."""
    return inputs * (inputs + 1) // 2


def input_count(pair_count: int) -> int:
    """N from P = N(N+1)/2."""
    inputs = int((np.sqrt(8 * pair_count + 1) - 1) / 2)
    if inputs * (inputs + 1) // 2 != pair_count:
        raise ValueError(f"{pair_count} is not a number of pairs N(N+1)/2 of N inputs.")
    return inputs


def _one_program(function: Callable[[A], A]) -> Callable[[A], A]:
    """`function`, compiled as one program for arrays of JAX, which would compile each of its operations otherwise."""
    compiled = jax.jit(function, inline=True)

    @wraps(function)
    def call(x: A) -> A:
        return function(x) if isinstance(x, np.ndarray) else compiled(x)

    return call


@_one_program
def pack(K: Float[A, "*batch N N"]) -> Float[A, "*batch P"]:
    """A symmetric matrix as its P independent entries; derivatives are spread over both halves alike."""
    a, b = pairs(K.shape[-1])
    return 0.5 * (K[..., a, b] + K[..., b, a])


@_one_program
def unpack(k: Float[A, "*batch P"]) -> Float[A, "*batch N N"]:
    """The symmetric matrix of P packed entries."""
    return k[..., pair_table(input_count(k.shape[-1]))]


@_one_program
def unpack_covariance(V: Float[A, "*batch P P"]) -> Float[A, "*batch N N N N"]:
    """V_ab,cd from its packed P x P matrix."""
    table = pair_table(input_count(V.shape[-1]))
    return V[..., table[:, :, None, None], table[None, None, :, :]]


@_one_program
def pack_covariance(V: Float[A, "*batch N N N N"]) -> Float[A, "*batch P P"]:
    """The packed P x P matrix of V_ab,cd: its entries with a <= b and c <= d."""
    a, b = pairs(V.shape[-1])
    return V[..., a[:, None], b[:, None], a, b]


def sigma_product(G: Float[A, "*batch P"], Q: Float[A, "*batch P"]) -> Float[A, "*batch P P"]:
    r"""Covariance of one layer's kernel increments, packed.

    $$\Sigma_{ab,cd}(G, Q) = G_{ac} Q_{bd} + G_{ad} Q_{bc} + G_{bc} Q_{ad} + G_{bd} Q_{ac}$$
    """
    inputs = input_count(G.shape[-1])
    table, (a, b) = pair_table(inputs), pairs(inputs)
    ac, ad = table[a[:, None], a], table[a[:, None], b]
    bc, bd = table[b[:, None], a], table[b[:, None], b]
    return G[..., ac] * Q[..., bd] + G[..., ad] * Q[..., bc] + G[..., bc] * Q[..., ad] + G[..., bd] * Q[..., ac]


def wick(K: Float[A, "*batch P"]) -> Float[A, "*batch P P"]:
    r"""Covariance of the product of two Gaussians, packed: $K_{ac} K_{bd} + K_{ad} K_{bc}$ (the Wishart covariance)."""
    return 0.5 * sigma_product(K, K)
