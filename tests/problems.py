r"""Oracles that every suite reads: activations with derivatives written out in NumPy, and trajectories whose K0, V4, K1
are known.

Nothing here is computed by the package; its objects are only named. For one input and F = s^2 the leading order in 1/n
of a network of layers is known without any closure. With h = eps^2 and the response
$r_m = h\, C_W \prod_{m < j < l} (1 + h \chi_j)$ to layer m,

$$H_l = \sum_{m, m'} r_m r_{m'} \mathrm{Cov}(F_m, F_{m'}), \qquad V_{4,l} = 2 k_l^2 + 2 \sum_m r_m k_m^2\, E[F''_m] + H_l,$$
$$K_{1,l+1} = K_{1,l} + h \left( \chi_l K_{1,l}
  + C_W \left( \tfrac12 \sum_m r_m \mathrm{Cov}(F''_l, F_m) + \tfrac18 E[F''''_l] H_l \right) \right),$$

where F_m stands for F(phi) at layer m: V4 is the variance of a linear equation driven by independent particles, K1
follows from the second order of E[F] in the change of its variance.
"""

import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.polynomial import Polynomial
from numpy.polynomial.legendre import leggauss
from scipy.integrate import quad
from scipy.special import erf, expit

import kernel_eft_jax as keft
from kernel_eft_jax.activations import Expansion

# --- activations: s^(r)(x), r = 0..4 ----------------------------------------------------------------------------------


def chain(inner: Callable, slope: Polynomial) -> Callable:
    """Derivatives of a function y(x) that obeys y' = slope(y): polynomials in y."""
    derivatives = [Polynomial([0, 1])]
    for _ in range(4):
        derivatives.append(derivatives[-1].deriv() * slope)
    return lambda x, r: derivatives[r](inner(x))


def times_x(f: Callable) -> Callable:
    """x f(x), by Leibniz's rule."""
    return lambda x, r: x * f(x, r) + (r * f(x, r - 1) if r else 0)


tanh = chain(np.tanh, Polynomial([1, 0, -1]))
_falling = chain(expit, Polynomial([0, 1, -1]))


def logistic(x, r: int):
    """1 / (1 + e^-x); its derivatives are odd or even and are taken where the function is small, so that none
    cancels."""
    return expit(x) if r == 0 else np.where(x > 0, (-1) ** (r + 1), 1) * _falling(-np.abs(x), r)


def softplus(beta: float) -> Callable:
    return lambda x, r: beta ** (r - 1) * (np.logaddexp(0, beta * x) if r == 0 else logistic(beta * x, r - 1))


def normal(x, r):
    """The normal distribution function: its derivatives are Hermite polynomials times the density."""
    if r == 0:
        return (1 + erf(x / np.sqrt(2))) / 2
    return (1, -x, x**2 - 1, 3 * x - x**3)[r - 1] * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def error_function(x, r):
    return erf(x) if r == 0 else 2 * np.sqrt(2) ** r * normal(np.sqrt(2) * x, r)


def polynomial(*coefficients: float) -> Callable:
    return lambda x, r: Polynomial(coefficients).deriv(r)(x)


class Case(NamedTuple):
    """An activation, its derivatives s(x, r) in NumPy, and how far its nearest pole lies from the real axis."""

    activation: keft.Activation
    s: Callable
    pole: float = np.pi


CUBIC = (0.2, 1.0, 0.3, -0.1)
CLOSED = {
    "Linear": Case(keft.Linear(), polynomial(0, 1)),
    "Erf": Case(keft.Erf(), error_function),
    "Sin": Case(keft.Sin(), lambda x, r: np.sin(x + r * np.pi / 2)),
    "GELU": Case(keft.GELU(), times_x(normal)),
}
SUMMED = {
    "Tanh": Case(keft.Tanh(), tanh, np.pi / 2),
    "SiLU": Case(keft.SiLU(), times_x(logistic)),
    "Softplus(0.5)": Case(keft.Softplus(jnp.array(0.5)), softplus(0.5), 2 * np.pi),
    "Softplus(2)": Case(keft.Softplus(jnp.array(2.0)), softplus(2), np.pi / 2),
    "Polynomial": Case(keft.Polynomial(jnp.array(CUBIC)), polynomial(*CUBIC)),
    "Smooth": Case(keft.Smooth(lambda x: x * jnp.tanh(x)), times_x(tanh), np.pi / 2),
    "Scaled": Case(
        keft.Scaled(keft.Tanh(), jnp.array(0.7), jnp.array(1.3)),
        lambda x, r: 1.3 * 0.7**r * tanh(0.7 * x, r),
        np.pi / 1.4,
    ),
}
SMOOTH = CLOSED | SUMMED
KINKED = {"ReLU": keft.ReLU(), "LeakyReLU": keft.LeakyReLU(jnp.array(0.2))}
ACTIVATIONS = {name: case.activation for name, case in SMOOTH.items()} | KINKED


def line(step: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of a trapezoidal rule for a standard normal variable."""
    half = int(np.ceil(9.5 / step))
    x = np.arange(-half, half + 1) * step
    return x, np.exp(-(x**2) / 2) * step / np.sqrt(2 * np.pi)


def resolve(case: Case, k: float) -> tuple[np.ndarray, np.ndarray]:
    """A rule fine enough for case.s at variance k: its error is about exp(-2 pi / 0.1)."""
    return line(min(0.3, 0.1 * case.pole / np.sqrt(k)))


def norms(case: Case, k: float) -> np.ndarray:
    """sqrt(E[s^(r)^2]) for r = 0..4."""
    x, w = resolve(case, k)
    return np.array([np.sqrt(case.s(np.sqrt(k) * x, r) ** 2 @ w) for r in range(5)])


def pair_moments(case: Case, k_aa: float, k_bb: float, rho: float) -> np.ndarray:
    """E[s^(r)(phi_a) s^(q)(phi_b)] for r, q = 0..4, by a product rule in independent coordinates."""
    rest = np.sqrt(k_bb * (1 - rho) * (1 + rho))
    (x, w), (y, v) = resolve(case, max(k_aa, k_bb)), resolve(case, rest**2 + 1e-9)
    phi_a, phi_b = np.sqrt(k_aa) * x, (rho * np.sqrt(k_bb) * x)[:, None] + rest * y
    return np.stack([case.s(phi_a, r) * w for r in range(5)]) @ np.stack([case.s(phi_b, q) @ v for q in range(5)]).T


def expansion_from(M: np.ndarray) -> Expansion:
    """Price's theorem: derivatives of E[s_a s_b] by (k_aa, k_bb, k_ab), from M[r, q] = E[s^(r)_a s^(q)_b]."""
    aa_bb, aa_ab, bb_ab = M[2, 2] / 4, M[3, 1] / 2, M[1, 3] / 2
    curvature = np.array([[M[4, 0] / 4, aa_bb, aa_ab], [aa_bb, M[0, 4] / 4, bb_ab], [aa_ab, bb_ab, M[2, 2]]])
    return Expansion(M[0, 0], np.array([M[2, 0] / 2, M[0, 2] / 2, M[1, 1]]), curvature)


# --- trajectories -----------------------------------------------------------------------------------------------------


class Known(NamedTuple):
    """A value, how accurately it is known relative to its largest entry, and where it comes from."""

    value: np.ndarray
    rtol: float
    source: str


class Problem(NamedTuple):
    """A model with its input kernel and depths, and what is known there.

    `known` may hold K0 (T, N, N); V4 (T, N, N, N, N) and K1 (T, N, N), exact at leading order in 1/n; and V4_g_only,
    K1_g_only, what the equations of GOnly give. `depth` says where, in the words of `solve`: ts, or layers and eps.
    """

    name: str
    model: keft.Model
    K0: np.ndarray
    depth: dict
    known: dict[str, Known]
    tags: frozenset[str]


AXES = {"K0": 2, "V4": 4, "V4_g_only": 4, "K1": 2, "K1_g_only": 2}


def problem(name, activation, C_W, C_b, K0, depth, values, rtol, source, *tags) -> Problem:
    """A row of the table; values of one input are given without their axes of length one."""
    K0, count = np.atleast_2d(np.asarray(K0, dtype=float)), len(depth.get("ts", depth.get("layers")))
    known = {q: Known(np.reshape(v, (count,) + (len(K0),) * AXES[q]), rtol, source) for q, v in values.items()}
    tags += ("continuum" if "ts" in depth else "layers", "one input" if len(K0) == 1 else "many inputs")
    model = keft.Model(activation, C_W=jnp.array(C_W), C_b=jnp.array(C_b))
    return Problem(name, model, K0, depth, known, frozenset(tags))


THREE_INPUTS = np.array([[2.0, 0.6, -0.4], [0.6, 1.0, 0.3], [-0.4, 0.3, 0.5]])


def wick(K):
    """K_ac K_bd + K_ad K_bc."""
    return np.einsum("ac,bd->abcd", K, K) + np.einsum("ad,bc->abcd", K, K)


def sigma(G, Q):
    """G_ac Q_bd + G_ad Q_bc + G_bc Q_ad + G_bd Q_ac."""
    return sum(np.einsum(f"{g},{q}->abcd", G, Q) for g, q in (("ac", "bd"), ("ad", "bc"), ("bc", "ad"), ("bd", "ac")))


def linear_continuum(C_W: float, C_b: float) -> Problem:
    """Q(t) = exp(C_W t) Q(0) and K0 = (Q - C_b) / C_W, so that dV4/dt = 2 C_W V4 + Sigma(K0, Q) can be integrated by
    hand."""
    K, ones, ts = THREE_INPUTS, np.ones((3, 3)), np.array([0.25, 1.0, 2.0])
    Q = C_b + C_W * K
    K0 = np.stack([K + np.expm1(C_W * t) / C_W * Q for t in ts])
    gain = [(2 * t * wick(Q) + C_b * np.expm1(-C_W * t) / C_W * sigma(ones, Q)) / C_W for t in ts]
    V4 = np.stack([np.exp(2 * C_W * t) * (wick(K) + g) for t, g in zip(ts, gain, strict=True)])
    values = {"K0": K0, "V4": V4, "V4_g_only": V4, "K1": 0 * K0, "K1_g_only": 0 * K0}
    return problem(
        f"linear, C_b = {C_b}", keft.Linear(), C_W, C_b, K, {"ts": ts}, values, 1e-13, "by hand", "closed form"
    )


def linear_layers(C_W: float, eps: float) -> Problem:
    """A layer multiplies V4 by (1 + h)^2 and adds (2 h + h^2) Wick(K0), h = eps^2 C_W."""
    K, h, layers = THREE_INPUTS, eps**2 * C_W, np.array([1, 4, 8])
    K0 = np.stack([(1 + h) ** l * K for l in layers])
    V4 = np.stack([(1 + h) ** (2 * l) * (1 + l * (1 - (1 + h) ** -2)) * wick(K) for l in layers])
    values = {"K0": K0, "V4": V4, "V4_g_only": V4, "K1": 0 * K0, "K1_g_only": 0 * K0}
    depth = {"layers": layers, "eps": eps}
    return problem("linear layers", keft.Linear(), C_W, 0.0, K, depth, values, 1e-13, "by hand", "closed form")


def sine_continuum(C_W: float, k: float) -> Problem:
    """sin: every covariance is a sum of exponentials, K0 is a logarithm; sums over layers become Gauss-Legendre
    rules."""
    x, w = leggauss(24)

    def rule(t):
        return t * (x + 1) / 2, t * w / 2

    def K0(t):
        return np.log1p(np.expm1(2 * k) * np.exp(C_W * t)) / 2

    def Phi(t, u):
        """dK0(t) / dK0(u) = Q(t) / Q(u)."""
        return np.expm1(-2 * K0(t)) / np.expm1(-2 * K0(u))

    def cosines(t):
        """int du Phi(t, u) Cov(cos 2 phi_t, cos 2 phi_u)."""
        u, du = rule(t)
        a, b = K0(u), K0(t)
        return du @ (Phi(t, u) * ((np.exp(-2 * (b - a)) + np.exp(-2 * (b + 3 * a))) / 2 - np.exp(-2 * (a + b))))

    def H(t):
        u, du = rule(t)
        return C_W**2 / 2 * du @ (Phi(t, u) ** 2 * np.array([cosines(s) for s in u]))

    def V4(t):
        u, du = rule(t)
        return 2 * K0(t) ** 2 + 4 * C_W * du @ (Phi(t, u) * K0(u) ** 2 * np.exp(-2 * K0(u))) + H(t)

    def K1(t):
        u, du = rule(t)
        source = [-(C_W**2) / 2 * cosines(s) - C_W * np.exp(-2 * K0(s)) * H(s) for s in u]
        return du @ (Phi(t, u) * np.array(source))

    ts = np.array([1.0, 2.0, 4.0])
    values = {"K0": K0(ts), "V4": [V4(t) for t in ts], "K1": [K1(t) for t in ts]}
    return problem("sine", keft.Sin(), C_W, 0.0, k, {"ts": ts}, values, 1e-10, "exponentials")


def relu_continuum(C_W: float, k: float) -> Problem:
    """ReLU: K0 grows like exp(c t), c = C_W / 2, and the correlation of two depths is a function of their distance."""
    c = C_W / 2

    def squares(u):
        """Cov(relu^2, relu^2) of depths that lie u apart, for unit variances (arc-cosine kernel of order 2)."""
        cos = np.exp(-c * u / 2)
        theta = np.arccos(cos)
        return (3 * np.sin(theta) * cos + (np.pi - theta) * (1 + 2 * cos**2)) / (2 * np.pi) - 0.25

    def step_square(u):
        """Cov(step, relu^2), likewise."""
        cos = np.exp(-c * u / 2)
        theta = np.arccos(cos)
        return (np.pi - theta + np.sin(theta) * cos) / (2 * np.pi) - 0.25

    ts = np.array([0.25, 0.5, 1.0])
    over = {
        f: [quad(lambda u, t, f: (t - u) * f(u), 0, t, (t, f), epsabs=1e-13)[0] for t in ts]
        for f in (squares, step_square)
    }
    K0 = k * np.exp(c * ts)
    values = {
        "K0": K0,
        "V4": K0**2 * (2 - 4 * np.expm1(-c * ts) + 8 * c**2 * np.array(over[squares])),
        "K1": 4 * c**2 * K0 * np.array(over[step_square]),
        "V4_g_only": K0**2 * (2 + 4 * c * ts),
        "K1_g_only": 0 * K0,
    }
    return problem("relu", keft.ReLU(), C_W, 0.0, k, {"ts": ts}, values, 1e-10, "arc-cosine kernels", "kinked")


def one_input_layers(case: Case, C_W: float, C_b: float, k: float, eps: float, layers: int) -> dict[str, np.ndarray]:
    """K0, V4, K1 and V4, K1 of GOnly at layers 0, 1, ..., `layers`, by the equations at the head of this file."""
    s, h = case.s, eps**2
    functions = (
        lambda phi: s(phi, 0) ** 2,
        lambda phi: 2 * (s(phi, 1) ** 2 + s(phi, 0) * s(phi, 2)),
        lambda phi: 2 * (3 * s(phi, 2) ** 2 + 4 * s(phi, 1) * s(phi, 3) + s(phi, 0) * s(phi, 4)),
    )

    def means(k):
        x, w = resolve(case, k)
        return [f(np.sqrt(k) * x) @ w for f in functions]

    def covariance(f, late, early):
        """Cov(f(phi_late), F(phi_early)): the later phi is the earlier one and an independent rest."""
        (x, w), (y, v) = resolve(case, late), resolve(case, late - early + 1e-9)
        phi = np.sqrt(early) * x
        smoothed = f(phi[:, None] + np.sqrt(late - early) * y) @ v
        return (smoothed - smoothed @ w) * functions[0](phi) @ w

    ks, curved, response, F_F = [k], [], np.zeros(0), np.zeros((layers + 1, layers + 1))
    V4_g_only, K1, K1_g_only, rows = 2 * k**2, 0.0, 0.0, []
    for l in range(layers + 1):
        k = ks[l]
        F, F2, F4 = means(k)
        Q, chi = C_b + C_W * F, C_W * F2 / 2
        H = response @ F_F[:l, :l] @ response
        rows.append((k, 2 * k**2 + 2 * response @ np.array(curved) + H, K1, V4_g_only, K1_g_only))
        bend = response @ np.array([covariance(functions[1], k, early) for early in ks[:l]])
        K1 += h * (chi * K1 + C_W * (bend / 2 + F4 / 8 * H))
        K1_g_only += h * (chi * K1_g_only + C_W * F4 / 8 * V4_g_only)
        V4_g_only = (1 + h * chi) ** 2 * V4_g_only + 4 * h * k * Q + 2 * h**2 * Q**2
        F_F[l, : l + 1] = F_F[: l + 1, l] = [covariance(functions[0], k, early) for early in ks]
        curved.append(k**2 * F2)
        response = np.append((1 + h * chi) * response, h * C_W)
        ks.append(k + h * Q)
    return dict(zip(("K0", "V4", "K1", "V4_g_only", "K1_g_only"), np.array(rows).T, strict=True))


def two_input_layers(case: Case, C_W: float, K: np.ndarray, eps: float, layers: int) -> dict[str, np.ndarray]:
    """K0, V4, K1 of two inputs at the last layer, in pairs (aa, ab, bb): the fluctuation field of section 5 as sums
    over layers.

    h_L = sum_l R_Ll xi_l(s s), and covariances of the free fields at two layers are averages over phi of the earlier
    one and a rest: trapezoidal rules in four variables, no modes. Correlations of one are allowed.
    """
    s, h, kernels, responses = case.s, eps**2 * C_W, [np.asarray(K, float)], []
    for _ in range(layers):
        values, chi, hess = _pair_response(case, kernels[-1])
        responses.append((chi, hess))
        kernels.append(kernels[-1] + h * values)

    def factor(K):
        """Lower triangular L with L L^T = K, which may be singular."""
        first = np.sqrt(K[0, 0])
        across = K[0, 1] / first if first > 0 else 0.0
        return np.array([[first, 0], [across, np.sqrt(max(K[1, 1] - across**2, 0))]])

    def nodes(width):
        """A seventh of the distance of the pole: exp(-2 pi / 0.25) would be 1e-11, but erf(x + iy) grows like
        exp(y^2)."""
        return line(min(0.7, 0.14 * case.pole / width)) if width > 1e-12 else (np.zeros(1), np.ones(1))

    def given(early, rest):
        """E[f | phi_early] for s s and for its second derivatives by (aa, ab, bb), (pairs, 4, x, y)."""
        L, M = factor(early), factor(rest)
        (x, w), (y, v) = nodes(np.hypot(L[0, 0], abs(L[1, 0]))), nodes(L[1, 1])
        (t, weight), (u, along) = nodes(max(M[0, 0], abs(M[1, 0]))), nodes(M[1, 1])
        a = [s(L[0, 0] * x[:, None] + M[0, 0] * t, r) for r in range(3)]  # (x, t)
        phi_b = (L[1, 0] * x[:, None] + L[1, 1] * y)[:, :, None] + M[1, 0] * t  # (x, y, t)
        b = np.zeros((3, *phi_b.shape))
        squares = np.zeros((2, *phi_b.shape))
        for shift, share in zip(M[1, 1] * u, along, strict=True):
            here = [s(phi_b + shift, r) for r in range(3)]
            b += share * np.stack(here)
            squares += share * np.stack([here[0] ** 2, 2 * (here[1] ** 2 + here[0] * here[2])])
        found = np.zeros((3, 4, x.size, y.size))
        of_a, of_b = [a[0] ** 2, 2 * (a[1] ** 2 + a[0] * a[2])], squares
        found[0, 0], found[0, 1] = ((f @ weight)[:, None] for f in of_a)
        found[2, 0], found[2, 3] = (f @ weight for f in of_b)
        mixed = ((0, 0, 1), (2, 0, 1), (1, 1, 2), (0, 2, 1))
        found[1] = [scale * np.einsum("xt,xyt,t->xy", a[i], b[j], weight, optimize=True) for i, j, scale in mixed]
        phi_a, phi_b = np.broadcast_arrays((L[0, 0] * x)[:, None], L[1, 0] * x[:, None] + L[1, 1] * y)
        here = [s(phi, 0) for phi in (phi_a, phi_b)]
        F = np.stack([here[0] ** 2, here[0] * here[1], here[1] ** 2])
        G = np.stack([phi_a**2, phi_a * phi_b, phi_b**2])
        weights = np.outer(w, v)
        F, G = (f - np.einsum("pxy,xy->p", f, weights)[:, None, None] for f in (F, G))
        return np.einsum("pfxy,qxy,xy->pfq", found, F, weights), np.einsum("pxy,qxy,xy->pq", G, F, weights)

    V, K1, R, FF, GF = None, np.zeros(3), np.zeros((0, 3, 3)), np.zeros((layers, layers, 3, 3)), []
    for l in range(layers + 1):
        k = kernels[l][[0, 0, 1], [0, 1, 1]]
        along_h = np.einsum("lpq,lmqr,msr->ps", R, FF[:l, :l], R)
        cross = sum((G @ r.T for G, r in zip(GF, R, strict=True)), np.zeros((3, 3)))
        a, b = np.array([0, 0, 1]), np.array([0, 1, 1])
        free = wick(kernels[l])[a[:, None], b[:, None], a, b]
        V, K1_here = free + cross + cross.T + along_h, K1
        if l == layers:
            return {"K0": k, "V4": V, "K1": K1_here}
        chi, hess = responses[l]
        both = [given(kernels[early], kernels[l] - kernels[early]) for early in range(l + 1)]
        bend = np.zeros(3)  # Cov(xi(grad^2 s s), h)
        for (found, _), r in zip(both[:l], R, strict=True):
            bend += np.einsum("pfq,fq->p", found[:, 1:], r)
        K1 = K1 + h * (chi @ K1 + 0.5 * np.einsum("pqr,qr->p", hess, along_h) + 0.5 * bend)
        for early, (found, _) in enumerate(both):
            FF[l, early], FF[early, l] = found[:, 0], found[:, 0].T
        GF.append(both[l][1])
        R = np.concatenate([R + h * np.einsum("pq,lqr->lpr", chi, R), h * np.eye(3)[None]])
    raise AssertionError


def _pair_response(case, K):
    """E[s s] of two inputs as a matrix, and its first and second derivatives by (aa, ab, bb) for the pairs (aa, ab,
    bb)."""
    values, chi, hess = np.zeros((2, 2)), np.zeros((3, 3)), np.zeros((3, 3, 3))
    for i, place in ((0, 0), (1, 2)):
        alone = expansion_from(pair_moments(case, K[i, i], K[i, i], 1.0))
        values[i, i], chi[place, place] = alone.value, alone.gradient.sum()
        hess[place, place, place] = alone.hessian.sum()
    rho = np.clip(K[0, 1] / np.sqrt(K[0, 0] * K[1, 1]), -1, 1)
    both, order = expansion_from(pair_moments(case, K[0, 0], K[1, 1], rho)), np.array([0, 2, 1])
    values[0, 1] = values[1, 0] = both.value
    chi[1], hess[1] = both.gradient[order], both.hessian[np.ix_(order, order)]
    return values, chi, hess


def layers(name: str, C_W: float, C_b: float, k: float, eps: float, count: int) -> Problem:
    case = SMOOTH[name]
    values = {q: v[[1, count]] for q, v in one_input_layers(case, C_W, C_b, k, eps, count).items()}
    depth = {"layers": [1, count], "eps": eps}
    return problem(f"{name} layers", case.activation, C_W, C_b, k, depth, values, 1e-10, "sums over layers")


def published_setting() -> Problem:
    """Input 0 of arXiv 2604.15742 in the continuum: `one_input_layers` at T = 2 with 8 to 128 layers, extrapolated."""
    values = {"K0": 4.36831568, "V4": 48.482031, "K1": -0.454211, "V4_g_only": 47.818869, "K1_g_only": -1.0272445}
    return problem(
        "published", keft.Tanh(), 2.0, 0.0, 2.0, {"ts": [2.0]}, values, 1e-6, "layers, extrapolated", "published"
    )


def neural_tangents() -> list[Problem]:
    """Kernels of residual blocks by neural-tangents, frozen in `data`; the script beside them makes them again."""
    data = json.loads((pathlib.Path(__file__).parent / "data" / "neural_tangents.json").read_text())
    rows = []
    for case in data["cases"]:
        at = data["settings"][case["setting"]]
        rows.append(
            problem(
                f"neural-tangents {case['setting']} {case['activation']}",
                ACTIVATIONS[case["activation"]],
                at["C_W"],
                at["C_b"],
                at["K0"],
                {"layers": [at["layers"]], "eps": at["eps"]},
                {"K0": case["K"]},
                1e-11,
                "neural-tangents",
            )
        )
    return rows


PROBLEMS = [
    linear_continuum(1.7, 0.0),
    linear_continuum(1.7, 0.4),
    linear_layers(1.7, 0.5),
    sine_continuum(2.0, 1.0),
    relu_continuum(2.0, 1.0),
    published_setting(),
    layers("Tanh", 2.0, 0.0, 2.0, 0.5, 8),
    layers("GELU", 1.5, 0.2, 1.0, 0.5, 4),
    layers("SiLU", 2.0, 0.0, 1.0, 0.4, 5),
    layers("Softplus(2)", 1.0, 0.0, 0.8, 0.3, 5),
    layers("Polynomial", 0.5, 0.1, 0.5, 0.2, 4),
    *neural_tangents(),
]


def select(quantity: str, *tags: str) -> list[Problem]:
    """The problems where a quantity is known, among those with all of these tags."""
    return [p for p in PROBLEMS if quantity in p.known and p.tags.issuperset(tags)]
