r"""Gaussian expectations of smooth functions, converged, at any correlation.

One input: the trapezoidal rule under the Gaussian weight converges geometrically. Two inputs: with the coefficients
$c_j = E[f(\sqrt{k} x)\, he_j(x)]$ in orthonormal probabilists' Hermite polynomials (Mehler),

$$E[f^{(r)}(\phi_a)\, g^{(s)}(\phi_b)] = \sum_j f_{r,j}\, g_{s,j}\, \rho^j, \qquad f_{r,j} = \sqrt{(j + r)! / j!}\; k^{-r/2}\, c_{j+r}$$

so derivatives cost nothing, and a whole kernel costs one table product per input. At large variance the series becomes
slow as |rho| -> 1; pairs beyond `NEAR` are summed on a grid instead, over phi_a and over the little that phi_b then has
left, with Price's theorem as its derivative rule, because the square root in that grid is singular at rho = +-1.
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .checks import check_kernel

TERMS = 640
NEAR = 0.96
Function = Callable[[Array], Array]
Orders = tuple[tuple[int, int], ...]


@lru_cache
def line_rule(
    step: float = 1 / 32, half_width: float = 10.0
) -> tuple[Float[np.ndarray, " M"], Float[np.ndarray, " M"]]:
    """Nodes and weights of the trapezoidal rule for a standard normal variable, in float64."""
    half = round(half_width / step)
    x = np.arange(-half, half + 1) * step
    return x, np.exp(-(x**2) / 2) * step / np.sqrt(2 * np.pi)


@lru_cache
def hermite_table(terms: int, step: float = 1 / 32) -> Float[np.ndarray, "terms M"]:
    """Weighted orthonormal Hermite polynomials w_m he_j(x_m) on the nodes of `line_rule`."""
    x, _ = line_rule(step)
    # Scaled by exp(-x^2/4), the Hermite functions stay of order one for every j: no overflow at degree 1000.
    psi = np.empty((terms + 1, x.size))
    psi[0] = np.exp(-(x**2) / 4)
    psi[1] = x * psi[0]
    for j in range(1, terms):
        psi[j + 1] = (x * psi[j] - np.sqrt(j) * psi[j - 1]) / np.sqrt(j + 1)
    return psi[:terms] * np.exp(-(x**2) / 4) * step / np.sqrt(2 * np.pi)


def derivative(f: Function, order: int) -> Function:
    """The elementwise derivative of an elementwise function."""
    for _ in range(order):
        f = partial(lambda f, x: jax.jvp(f, (x,), (jnp.ones_like(x),))[1], f)
    return f


def derivatives(f: Function, order: int) -> Callable[[Array], list[Array]]:
    """f and its elementwise derivatives up to an order, each computed once."""
    if order == 0:
        return lambda x: [f(x)]

    def one_more(x):
        lower, last = jax.jvp(derivatives(f, order - 1), (x,), (jnp.ones_like(x),))
        return [*lower, last[-1]]

    return one_more


def gaussian_mean(f: Function, k: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    r"""$E[f(\sqrt{k} x)]$, x standard normal; k > 0."""
    x, w = line_rule()
    return f(jnp.sqrt(k)[..., None] * x.astype(k.dtype)) @ w.astype(k.dtype)


def hermite_coefficients(f: Function, k: Float[Array, "*shape"], terms: int = TERMS) -> Float[Array, "*shape terms"]:
    r"""$c_j(k) = E[f(\sqrt{k} x)\, he_j(x)]$, x standard normal, for j < terms; k > 0."""
    x, _ = line_rule()
    table = hermite_table(terms).astype(k.dtype)
    return jnp.matmul(f(jnp.sqrt(k)[..., None] * x.astype(k.dtype)), table.T, precision="highest")


def derivative_coefficients(
    f: Function, k: Float[Array, "*shape"], order: int, terms: int = TERMS
) -> list[Float[Array, "*shape terms"]]:
    r"""Hermite coefficients of f and its derivatives up to `order`.

    Only the highest derivative is projected; the others are integrated from it, $c_{j+1}[f] = \sqrt{k / (j + 1)}\, c_j[f']$,
    which loses no digits where differentiating the coefficients of f would, at small k and high j.
    """
    factor = jnp.sqrt(k[..., None] / np.arange(1, terms).astype(k.dtype))
    (x, w), table = line_rule(), hermite_table(terms).astype(k.dtype)
    *others, highest = derivatives(f, order)(jnp.sqrt(k)[..., None] * x.astype(k.dtype))
    coefficients = [jnp.matmul(highest, table.T, precision="highest")]
    for r in reversed(range(order)):
        lowest = (others[r] @ w.astype(k.dtype))[..., None]
        coefficients.insert(0, jnp.concatenate([lowest, factor * coefficients[0][..., :-1]], axis=-1))
    return coefficients


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def powers(rho: Float[Array, "*shape"], count: int) -> Float[Array, "*shape count"]:
    """1, rho, rho^2, ...; derivatives of every order are powers again, exact everywhere, zero included."""
    stride = math.isqrt(max(count - 1, 0)) + 1
    low, high = (rho[..., None] ** j.astype(rho.dtype) for j in (np.arange(stride), np.arange(0, count, stride)))
    return (high[..., :, None] * low[..., None, :]).reshape(*rho.shape, -1)[..., :count]


@powers.defjvp
def _powers_jvp(count, primals, tangents):
    values = powers(primals[0], count)
    slopes = np.arange(1, count).astype(values.dtype) * values[..., : count - 1]
    return values, tangents[0][..., None] * jnp.concatenate([jnp.zeros_like(values[..., :1]), slopes], axis=-1)


def kernel_moments(
    f: Function,
    g: Function,
    variances: Float[Array, " N"],
    a: np.ndarray,
    b: np.ndarray,
    k_ab: Float[Array, " P"],
    orders: Orders,
    terms: int = TERMS,
) -> Float[Array, "orders P"]:
    r"""$E[f^{(r)}(\phi_a)\, g^{(s)}(\phi_b)]$ for each (r, s) in `orders` and each pair of inputs (a, b).

    `a` and `b` are index arrays known when compiling; where they are equal the pair is one input with itself.
    """
    same = a == b
    on_line = _line_moments(orders, f, g, variances)[:, a]
    if same.all():
        return on_line
    k_aa, k_bb = variances[a], variances[b]
    rho = jnp.where(same, 0, k_ab / jnp.sqrt(k_aa * k_bb))
    near = jnp.abs(rho) > NEAR
    r, s = np.array(orders).T
    f_r = jnp.stack(derivative_coefficients(f, variances, max(r), terms), 1)
    g_s = f_r if g is f else jnp.stack(derivative_coefficients(g, variances, max(s), terms), 1)
    series = jnp.einsum("prj,psj->rsp", f_r[a] * powers(rho, terms)[:, None], g_s[b], precision="highest")[r, s]
    on_grid = jax.lax.cond(
        jnp.any(near),
        lambda: near_moments(orders, (f, g), k_aa, k_bb, jnp.where(near, k_ab, jnp.sqrt(k_aa * k_bb))),
        lambda: series,
    )
    return jnp.where(same, on_line, jnp.where(near, on_grid, series))


def _line_moments(orders, f, g, variances):
    """`kernel_moments` of each input with itself, (orders, N)."""
    x, w = line_rule()
    points = jnp.sqrt(variances)[:, None] * x.astype(variances.dtype)
    r, s = np.array(orders).T
    f_r = jnp.stack(derivatives(f, max(r))(points))
    g_s = f_r if g is f else jnp.stack(derivatives(g, max(s))(points))
    return jnp.einsum("rnx,snx->rsn", f_r * w.astype(variances.dtype), g_s, precision="highest")[r, s]


def near_moments(orders: Orders, functions: tuple[Function, Function], k_aa, k_bb, k_ab) -> Float[Array, "orders P"]:
    """`kernel_moments` for strongly correlated pairs, by a grid over phi_a and the rest of phi_b, regular at rho = +-1."""
    arrays, static = eqx.partition(functions, eqx.is_array)
    return _near(orders, static, arrays, k_aa, k_bb, k_ab)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _near(orders, static, arrays, k_aa, k_bb, k_ab):
    f, g = eqx.combine(arrays, static)
    (x, w_x), (y, w_y) = line_rule(), line_rule(1 / 6)
    dtype, (r, s) = k_ab.dtype, np.array(orders).T

    def pair(k_aa, k_bb, k_ab):
        phi_a = jnp.sqrt(k_aa) * x.astype(dtype)
        rest = jnp.sqrt(jnp.maximum(k_bb - k_ab**2 / k_aa, 0))
        phi_b = (k_ab / k_aa * phi_a)[:, None] + rest * y.astype(dtype)
        f_r = jnp.stack(derivatives(f, max(r))(phi_a)) * w_x.astype(dtype)
        g_s = jnp.stack([v @ w_y.astype(dtype) for v in derivatives(g, max(s))(phi_b)])
        return jnp.matmul(f_r, g_s.T, precision="highest")[r, s]

    # One pair at a time: the grid of one pair fits in the cache, that of all pairs may not fit in memory.
    return jax.lax.map(lambda k: pair(*k), (k_aa, k_bb, k_ab)).T


@_near.defjvp
def _near_jvp(orders, static, primals, tangents):
    arrays, *k = primals
    d_arrays, d_aa, d_bb, d_ab = tangents
    count = len(orders)
    raised = tuple((r + i, s + j) for i, j in ((2, 0), (0, 2), (1, 1)) for r, s in orders)
    moments = _near(orders + raised, static, arrays, *k)
    _, by_parameters = jax.jvp(lambda arrays: _near.fun(orders, static, arrays, *k), (arrays,), (d_arrays,))
    d_k = (
        0.5 * moments[count : 2 * count] * d_aa
        + 0.5 * moments[2 * count : 3 * count] * d_bb
        + moments[3 * count :] * d_ab
    )
    return moments[:count], d_k + by_parameters


def moment_error(f: Function, k: Float[Array, "*shape"], terms: int = TERMS) -> Float[Array, "*shape"]:
    r"""Estimated error of `kernel_moments` of f with itself at variance k, up to second derivatives in k.

    Relative to E[f^2] for relative changes of k. Four things can be missing: the ends of the line, nodes (judged by moving them all by
    half a step), terms of the series at correlation `NEAR`, and smoothness: $E[f^{(r)}] = \sqrt{r!}\, k^{-r/2} c_r$ fails at once for a kink.
    """
    x, w = (v.astype(k.dtype) for v in line_rule())
    points, c = jnp.sqrt(k)[..., None] * x, hermite_coefficients(f, k, terms)
    scale, step = jnp.sqrt(f(points) ** 2 @ w), x[1] - x[0]

    def bend(x):
        density = jnp.exp(-(x**2) / 2) * step / math.sqrt(2 * math.pi)
        return (derivative(f, 2)(jnp.sqrt(k)[..., None] * x) ** 2 @ density) * k**2

    fine = bend(x)
    nodes = jnp.abs(fine - bend(x + step / 2)) / scale**2
    reached = jnp.sum(hermite_coefficients(derivative(f, 2), k, terms) ** 2, -1) * k**2
    tail = jnp.abs(fine - reached) * NEAR**terms / scale**2
    ends = points[..., np.array([0, -1])]
    at_ends = f(ends) ** 2 + (k[..., None] * derivative(f, 2)(ends)) ** 2
    edge = jnp.sum(at_ends, -1) * w[0] / step / scale**2
    count = min(terms, 5)
    by_parts = [
        jnp.abs(k ** (r / 2) * (derivative(f, r)(points) @ w) - math.sqrt(math.factorial(r)) * c[..., r]) / scale
        for r in range(1, count)
    ]
    return jnp.finfo(k.dtype).eps + edge + nodes + tail + sum(by_parts)


def expect(f: Function, g: Function, K: Float[ArrayLike, "N N"]) -> Float[Array, "N N"]:
    r"""Gaussian expectations of two functions at every pair of inputs.

    $$E_{ab} = E[f(\phi_a)\, g(\phi_b)], \qquad \phi \sim N(0, K)$$

    f and g are smooth elementwise functions; K is a kernel with positive diagonal. In float64 the result and its first two
    derivatives are accurate to 1e-10 for functions as smooth as tanh and variances up to 30, for every correlation from -1
    to 1. Do not use it for functions with kinks (ReLU), whose Hermite series converges slowly: `Model.Q` has closed forms.
    """
    return _expect(f, g, check_kernel(K, "K"))


@eqx.filter_jit
def _expect(f, g, K):
    inputs = K.shape[-1]
    a, b = np.indices((inputs, inputs)).reshape(2, -1)
    return kernel_moments(f, g, jnp.diagonal(K), a, b, K.reshape(-1), ((0, 0),)).reshape(inputs, inputs)
