r"""Moments of all pairs of many inputs by Mehler's series: the numerical sums run over single inputs, not over pairs.

With $s^{(i)}(\phi_a) = \sum_n \alpha^{(i)}_{a,n} he_n(\psi_a)$ and
$\alpha^{(i)}_n = \sqrt{(n+1) \cdots (n+i)}\; k_{aa}^{-i/2} \alpha_{n+i}$,

$$E[s^{(i)}_a s^{(j)}_b] = \sum_n \rho^n \alpha^{(i)}_{a,n} \alpha^{(j)}_{b,n}$$

The terms beyond the last one are bounded by $|\rho|^n$ times the norms that the coefficients miss. If this bound is too
large for one pair, the moments of all pairs are summed over the plane instead.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..linear import matmul
from ..pairs import input_count
from ..quadrature import derivatives, hermite_polynomials, powers
from ..selecting import root_of_rest
from .base import Activation, Expansion, differentiable, rule
from .pair_quadrature import assemble

TERMS, NODES = 128, 120
ORDERS = ((0, 0), (2, 0), (0, 2), (1, 1), (4, 0), (0, 4), (3, 1), (1, 3), (2, 2))


def between_many(activation: Activation, k: Float[Array, "M 3"]) -> Expansion:
    """The expansion of all pairs of different inputs, at their (k_aa, k_bb, k_ab)."""
    arrays, static = eqx.partition(activation, eqx.is_inexact_array)
    return Expansion(*_between(static, arrays, k))


def _by_quadrature(static, arrays, k):
    activation = eqx.combine(arrays, static)
    return tuple(jax.lax.map(lambda k: differentiable(activation, tuple(k)), k))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _between(static, arrays, k):
    found, error = by_series(eqx.combine(arrays, static), k)
    enough = jnp.max(error) < (1e-11 if k.dtype == jnp.float64 else 1e-6)
    return jax.lax.cond(enough, lambda: tuple(found), lambda: _by_quadrature(static, arrays, k))


@_between.defjvp
def _between_jvp(static, primals, tangents):
    # Derivatives are those of the sums over the plane, which exist at every correlation.
    return _between(static, *primals), jax.jvp(partial(_by_quadrature, static), primals, tangents)[1]


def by_series(activation: Activation, k: Float[Array, "M 3"]) -> tuple[Expansion, Float[Array, " M"]]:
    """The expansion of each pair, and a bound of what the series leaves out, in units of each quantity's own size."""
    inputs = input_count(k.shape[0]) + 1  # N(N - 1)/2 pairs of different inputs
    (a, b), k_ab = np.triu_indices(inputs, 1), k[:, 2]
    variances = jnp.concatenate([k[:1, 0], k[: inputs - 1, 1]])  # of the pairs 01, 02, ...
    alpha, left, size = jax.vmap(partial(_coefficients, activation))(variances)
    rho = k_ab / jnp.sqrt(variances[a]) / jnp.sqrt(variances[b])
    weights = powers(rho, TERMS)
    sums = {(i, j): jnp.sum(weights * alpha[a, i] * alpha[b, j], axis=1) for i, j in ORDERS}
    zero = jnp.zeros_like(k_ab)
    M = jnp.stack([jnp.stack([sums.get((i, j), zero) for j in range(5)]) for i in range(5)])
    never = jnp.zeros((), bool)
    as_they_are = partial(assemble, parts=(never, never))
    found = jax.vmap(as_they_are, in_axes=(2, 0, 0, 0))(M, variances[a], variances[b], k_ab)
    beyond = jnp.abs(rho) ** TERMS * left[a] * left[b] / (size[a] * size[b])
    return found, beyond


def _coefficients(activation, k):
    """Hermite coefficients of s and of its derivatives to order four; the norm of k s'' beyond the last term; the norm
    of s."""
    root = jnp.sqrt(k)
    x, w = rule(activation, jnp.zeros_like(k), root, NODES)
    s, _, dds = derivatives(activation, 2)(root * x)
    alpha = matmul(hermite_polynomials(x, TERMS + 4) * w[None], s)
    n = np.arange(TERMS)
    rows = [alpha[:TERMS]]
    for i in range(1, 5):
        rise = np.sqrt(np.prod([n + j for j in range(1, i + 1)], axis=0)).astype(k.dtype)
        rows.append(rise * alpha[i : TERMS + i] / root**i)
    alphas = jnp.stack(rows)
    norm = k**2 * jnp.sum(dds**2 * w)
    return alphas, root_of_rest(norm, k**2 * jnp.sum(alphas[2] ** 2)), jnp.sqrt(jnp.sum(s**2 * w))
