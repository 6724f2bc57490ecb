"""Gaussian moments of any activation by panels of Gauss-Legendre nodes in plain NumPy: the oracle of stated errors.

The panels have nodes of their own, 20 points each, and halve towards each kink and towards zero. Nothing here is
computed by the package; its activations are only named.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial.hermite_e import HermiteE
from numpy.polynomial.legendre import leggauss
from problems import SMOOTH, error_function, logistic, polynomial, softplus, tanh, times_x

import kernel_eft_jax as keft


class Function(NamedTuple):
    """An activation, its derivatives s(x, r) in NumPy, the largest r among them, the places at which it changes, and
    how quickly.

    For a function with kinks, at which s' or s'' jumps, the largest r is 2, without the delta functions.
    """

    activation: keft.Activation
    s: Callable
    orders: int = 4
    kinks: tuple[float, ...] = (0.0,)
    sharpness: float = 1.0
    frequency: float = 0.0  # of a sine, whose moments are known and which panels of any size would miss

    @property
    def jumps(self) -> np.ndarray:
        """How much s' jumps at each kink; nothing for a smooth function."""
        if self.orders == 4:
            return np.zeros(len(self.kinks))
        below, above = (self.s(np.nextafter(self.kinks, side), 1) for side in (-np.inf, np.inf))
        return above - below


def sine(scale):
    return lambda x, r: scale**r * np.sin(scale * x + r * np.pi / 2)


def composed(outer: Callable, inner: Callable) -> Callable:
    """outer(inner(x)), by Faa di Bruno's formula."""

    def s(x, r):
        g, y = [outer(inner(x, 0), j) for j in range(r + 1)], [inner(x, j) for j in range(r + 1)]
        terms = (
            lambda: g[0],
            lambda: g[1] * y[1],
            lambda: g[2] * y[1] ** 2 + g[1] * y[2],
            lambda: g[3] * y[1] ** 3 + 3 * g[2] * y[1] * y[2] + g[1] * y[3],
            lambda: (
                g[4] * y[1] ** 4 + 6 * g[3] * y[1] ** 2 * y[2] + g[2] * (3 * y[2] ** 2 + 4 * y[1] * y[3]) + g[1] * y[4]
            ),
        )
        return terms[r]()

    return s


def pieces(kinks, *functions) -> Callable:
    """s(x, r) from tuples (s, s', s'') of functions or numbers between the kinks."""

    def s(x, r):
        found = np.empty_like(x := np.asarray(x, float))
        where = np.searchsorted(kinks, x)
        for i, piece in enumerate(functions):
            here = where == i
            found[here] = piece[r](x[here]) if callable(piece[r]) else piece[r]
        return found

    return s


LINE = (lambda x: x, 1.0, 0.0)


def ramp(below):
    return pieces((0.0,), (lambda x: below * x, below, 0.0), LINE)


def elu(scale, alpha, rate=1.0):
    below = (
        lambda x: scale * alpha * np.expm1(rate * x),
        lambda x: scale * alpha * rate * np.exp(rate * x),
        lambda x: scale * alpha * rate**2 * np.exp(rate * x),
    )
    return pieces((0.0,), below, (lambda x: scale * x, scale, 0.0))


def clipped(low, high, slope=1.0, shift=0.0):
    """slope x + shift between two kinks, constant elsewhere."""
    ends = [(slope * c + shift, 0.0, 0.0) for c in (low, high)]
    return pieces((low, high), ends[0], (lambda x: slope * x + shift, slope, 0.0), ends[1])


HARD_SWISH = pieces((-3.0, 3.0), (0.0, 0.0, 0.0), (lambda x: x * (x + 3) / 6, lambda x: (2 * x + 3) / 6, 1 / 3), LINE)


def bump(x, r):
    """x exp(-x^2/2) and its derivatives."""
    return (-1) ** r * HermiteE.basis(r + 1)(x) * np.exp(-(x**2) / 2)


class Bump(keft.PairActivation):
    """An activation of a user's own: a closed form in which large variances of nearly equal inputs cancel,
    differentiated by JAX."""

    def __call__(self, x):
        return x * jnp.exp(-0.5 * x**2)

    def moment(self, k_aa, k_bb, k_ab):
        return k_ab / ((1 + k_aa) * (1 + k_bb) - k_ab**2) ** 1.5


FUNCTIONS = {name: Function(case.activation, case.s) for name, case in SMOOTH.items()} | {
    "Softplus(20)": Function(keft.Softplus(20.0), softplus(20), sharpness=20.0),
    "Smooth(softplus 20)": Function(keft.Smooth(lambda x: jax.nn.softplus(20 * x) / 20), softplus(20), sharpness=20.0),
    "Smooth(sin 10x)": Function(keft.Smooth(lambda x: jnp.sin(10 * x)), sine(10), frequency=10.0),
    "Sin": Function(keft.Sin(), sine(1), frequency=1.0),
    "tanh(x - 2)": Function(keft.Smooth(lambda x: jnp.tanh(x - 2)), lambda x, r: tanh(x - 2, r), kinks=(2.0,)),
    "ReLU": Function(keft.ReLU(), ramp(0.0), 2),
    "LeakyReLU": Function(keft.LeakyReLU(0.2), ramp(0.2), 2),
    "Abs": Function(keft.Abs(), ramp(-1.0), 2),
    "Smooth(abs)": Function(keft.Smooth(jnp.abs), ramp(-1.0), 2),
    "Smooth(elu)": Function(keft.Smooth(jax.nn.elu), elu(1.0, 1.0), 2),
    "Mish": Function(keft.Mish(), times_x(composed(tanh, softplus(1)))),
    "Smooth(gelu by tanh)": Function(
        keft.Smooth(jax.nn.gelu),
        times_x(composed(logistic, polynomial(0, *np.sqrt(8 / np.pi) * np.array([1, 0, 0.044715])))),
    ),
    "Bump": Function(Bump(), bump),
    "Scaled(Sin, 30)": Function(keft.Scaled(keft.Sin(), 30.0), sine(30), frequency=30.0),
    "Scaled(Erf, 1000)": Function(
        keft.Scaled(keft.Erf(), 1000.0), lambda x, r: 1000.0**r * error_function(1000 * x, r), sharpness=1000.0
    ),
    "PReLU": Function(keft.PReLU(), ramp(0.25), 2),
    "ELU": Function(keft.ELU(), elu(1.0, 1.0), 2),
    "CELU": Function(keft.CELU(0.5), elu(1.0, 0.5, 2.0), 2, sharpness=2.0),
    "SELU": Function(keft.SELU(), elu(1.0507009873554805, 1.6732632423543772), 2),
    "HardTanh": Function(keft.HardTanh(), clipped(-1.0, 1.0), 2, (-1.0, 1.0)),
    "ReLU6": Function(keft.ReLU6(), clipped(0.0, 6.0), 2, (0.0, 6.0)),
    "HardSwish": Function(keft.HardSwish(), HARD_SWISH, 2, (-3.0, 3.0)),
    "Softsign": Function(
        keft.Softsign(),
        lambda x, r: (x / (1 + np.abs(x)), (1 + np.abs(x)) ** -2.0, -2 * np.sign(x) * (1 + np.abs(x)) ** -3.0)[r],
        2,
    ),
    "Piecewise(hard swish)": Function(
        keft.Piecewise(lambda x: x * jnp.clip(x + 3, 0, 6) / 6, [-3.0, 3.0]), HARD_SWISH, 2, (-3.0, 3.0)
    ),
    "Piecewise(max(x + 1, 0))": Function(
        keft.Piecewise(lambda x: jnp.maximum(x + 1, 0), [-1.0]),
        pieces((-1.0,), (0.0, 0.0, 0.0), (lambda x: x + 1, 1.0, 0.0)),
        2,
        (-1.0,),
    ),
    "Piecewise(Huber)": Function(
        keft.Piecewise(lambda x: jnp.where(jnp.abs(x) < 1, x**2 / 2, jnp.abs(x) - 0.5), [-1.0, 1.0]),
        pieces(
            (-1.0, 1.0),
            (lambda x: -x - 0.5, -1.0, 0.0),
            (lambda x: x**2 / 2, lambda x: x, 1.0),
            (lambda x: x - 0.5, 1.0, 0.0),
        ),
        2,
        (-1.0, 1.0),
    ),
    "Scaled(HardTanh, -3)": Function(
        keft.Scaled(keft.HardTanh(), -3.0, 0.5), clipped(-1 / 3, 1 / 3, -1.5), 2, (-1 / 3, 1 / 3), 3.0
    ),
}

# Functions that `Smooth` does not promise to integrate, because they change far from zero or have kinks. Their error is
# stated.
NOT_FOR_SMOOTH = ("Smooth(sin 10x)", "Smooth(abs)", "Smooth(elu)", "tanh(x - 2)")


def panels(case: Function, root: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for a standard normal variable x and functions of root x; panels of 20 points halve towards
    each kink."""
    sizes = 0.5 / (case.sharpness * root) * 2.0 ** np.arange(60)
    steps = np.append(0, sizes[sizes < 18])
    step = min(0.5, 1 / max(case.frequency * root, 1e-9))
    edges = [np.arange(-9, 9 + step, step)] + [c / root + sign * steps for c in case.kinks for sign in (-1, 1)]
    edges = np.unique(np.concatenate(edges))
    edges = edges[np.abs(edges) <= 9]
    x, w = leggauss(20)
    half = 0.5 * np.diff(edges)[:, None]
    y, v = (edges[:-1, None] + half * (x + 1)).ravel(), (half * w).ravel()
    return y, v * np.exp(-(y**2) / 2) / np.sqrt(2 * np.pi)


def by_parts(x, y, rho) -> Callable:
    """(-d/dx)^r (-d/dy)^q of the density of (x, y), divided by the density of independent ones, as a function of r and
    q: a polynomial in few terms of the precision matrix."""
    rest = (1 - rho) * (1 + rho)
    u, v, p = (x - rho * y) / rest, (y - rho * x) / rest, 1 / rest
    ratio = np.exp(-0.5 * rho * (rho * (x**2 + y**2) - 2 * x * y) / rest) / np.sqrt(rest)
    polynomials = {
        (0, 0): lambda: 1.0,
        (1, 0): lambda: u,
        (0, 1): lambda: v,
        (2, 0): lambda: u**2 - p,
        (0, 2): lambda: v**2 - p,
        (1, 1): lambda: u * v + rho * p,
        (3, 0): lambda: u**3 - 3 * p * u,
        (0, 3): lambda: v**3 - 3 * p * v,
    }
    return lambda r, q: polynomials[r, q]() * ratio


ORDERS = ((0, 0), (2, 0), (0, 2), (1, 1), (4, 0), (2, 2), (3, 1), (0, 4), (1, 3))


def sine_moments(frequency: float, k: float, k_ab: float) -> np.ndarray:
    """E[s^(r)_a s^(q)_b] of sin(w x): a derivative shifts the phase, and a product of sines is made of the cosines of
    the difference and of the sum."""
    w, phase = frequency, np.pi / 2 * np.arange(5)
    size, largest = w**2 * abs(k_ab), np.exp(-(w**2) * (k - abs(k_ab)))
    less, more = -np.sign(k_ab) * largest * np.expm1(-2 * size), largest * (1 + np.exp(-2 * size))
    difference, total = (np.cos(p).round() for p in (phase[:, None] - phase, phase[:, None] + phase))
    power = w ** np.add.outer(np.arange(5), np.arange(5))
    return 0.25 * ((difference + total) * less + (difference - total) * more) * power


def true_moments(case: Function, k: float, k_ab: float) -> np.ndarray:
    """E[s^(r)_a s^(q)_b] for the orders that the expansion needs: by the product of two panel rules, or, for
    correlations above 0.95, by panels of phi_b for each phi_a."""
    if case.frequency:
        return sine_moments(case.frequency, k, k_ab)
    rho = k_ab / k
    return apart(case, k, rho) if abs(rho) <= 0.95 else nearly_equal(case, k, k_ab)


def apart(case: Function, k: float, rho: float) -> np.ndarray:
    """`true_moments` where inputs differ."""
    moments, root = np.full((5, 5), np.nan), np.sqrt(k)
    x, w = panels(case, root)
    if case.orders < 4 or k * case.sharpness**2 > 10:
        case = case._replace(orders=1)  # higher derivatives on the density, where those of s are local and cancel
    s = [case.s(root * x, r) * w for r in range(case.orders + 1)]
    parts, density = by_parts(x[:, None], x[None, :], rho), {}
    for r, q in ORDERS:
        rest = max(r - case.orders, 0), max(q - case.orders, 0)
        if rest not in density:
            density[rest] = parts(*rest)
        value = s[min(r, case.orders)] @ density[rest] @ s[min(q, case.orders)]
        moments[r, q] = value / root ** sum(rest)
    return moments


def nearly_equal(case: Function, k: float, k_ab: float) -> np.ndarray:
    """`true_moments` of nearly equal or opposite inputs, with third and fourth derivatives by parts. At a kink s'' is
    the jump of s' times the density of phi there. At a correlation of one or minus one the product of two such delta
    functions diverges: second derivatives of a function with kinks are left out there."""
    moments, root, rho = np.full((5, 5), np.nan), np.sqrt(k), k_ab / k
    rest = np.sqrt((k - abs(k_ab)) * (k + abs(k_ab))) / k
    kinks, jumps = np.array(case.kinks), case.jumps
    x, w = (
        v[0] for v in crowded((*kinks, *kinks / rho), root, min(1 / (case.sharpness * root), rest or 1), np.zeros(1))
    )

    def averaged(q, mean):
        if rest == 0:
            return case.s(mean, q)
        width = root * rest
        y, v = crowded(kinks, width, 1 / (case.sharpness * width), mean)
        phi = mean[:, None] + width * y
        if q == 2 and case.sharpness * width > 1:  # by parts, since s'' is local and cancels
            return np.sum(case.s(phi, 1) * y * v, axis=1) / width
        gap = (kinks - mean[:, None]) / width
        deltas = np.exp(-(gap**2) / 2) @ jumps / np.sqrt(2 * np.pi) / width
        return np.sum(case.s(phi, q) * v, axis=1) + (q == 2) * deltas

    deltas = jumps * np.exp(-(kinks**2) / (2 * k)) / np.sqrt(2 * np.pi * k)
    means, at_kinks = ([averaged(q, rho * phi) for q in range(3)] for phi in (root * x, kinks))

    def second(power, q):
        """E[phi^power s'' s^(q)]."""
        return (root * x) ** power * case.s(root * x, 2) * w @ means[q] + deltas * kinks**power @ at_kinks[q]

    moments[0, 0], moments[1, 1] = (case.s(root * x, q) * w @ means[q] for q in (0, 1))
    moments[2, 0] = moments[0, 2] = second(0, 0)
    if rest or case.orders == 4:
        once, both = second(1, 1), second(0, 2)
        moments[2, 2] = both
        moments[3, 1] = moments[1, 3] = (once - rho * k * both) / k
        moments[4, 0] = moments[0, 4] = ((second(2, 0) - k * second(0, 0)) / k - 2 * rho * once) / k + rho**2 * both
    return moments


def alone(case: Function, k: float, sign: int = 1) -> np.ndarray:
    """E[s(phi) s(sign phi)], k times its first and k^2 times its second derivative in k: by parts if k is large or s
    has kinks, so that no digits are lost by cancellation."""
    if case.frequency:
        z = case.frequency**2 * k
        return sign * np.array([-np.expm1(-2 * z) / 2, z * np.exp(-2 * z), -2 * z**2 * np.exp(-2 * z)])
    x, w = panels(case, np.sqrt(k))
    s, t = ([c**r * case.s(c * np.sqrt(k) * x, r) for r in range(case.orders + 1)] for c in (1, sign))
    if case.orders < 4 or k * case.sharpness**2 > 10:
        slope = np.sqrt(k) * x * 0.5 * (s[0] * t[1] + s[1] * t[0])
        return np.array([s[0] * t[0], slope, slope * (x**2 - 3) / 2]) @ w
    slope, bend = (
        np.sum([c * s[i] * t[n - i] for i, c in enumerate(row)], axis=0)
        for n, row in ((2, (1, 2, 1)), (4, (1, 4, 6, 4, 1)))
    )
    return np.array([s[0] * t[0], k * slope / 2, k**2 * bend / 4]) @ w


def two_inputs(case: Function, k: float, rho: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (phi_a, phi_b) of two inputs of variance k, and weights: panels of phi_a, and for each node panels of phi_b
    that halve towards its kinks. At a correlation of one or minus one phi_b follows phi_a."""
    root, rest = np.sqrt(k), np.sqrt((1 - rho) * (1 + rho))
    x, w = crowded(case.kinks, root, min(1 / (case.sharpness * root), rest or 1.0), np.zeros(1))
    x, w = x[0], w[0]
    if rest == 0:
        return root * np.stack([x, rho * x]), w
    y, v = crowded(case.kinks, root * rest, 1 / (case.sharpness * root * rest), root * rho * x)
    weights = v * w[:, None]
    keep = weights > 1e-40
    a = np.broadcast_to(x[:, None], y.shape)
    return root * np.stack([a, rho * a + rest * y])[:, keep], weights[keep]


def given(case: Function, k: float, rho: float, phi: float) -> tuple[np.ndarray, np.ndarray]:
    """s of the second of two inputs of variance k where the first is phi, and weights."""
    rest = np.sqrt(k * (1 - rho) * (1 + rho))
    if rest == 0:
        return case.s(np.array([rho * phi]), 0), np.ones(1)
    y, v = crowded(case.kinks, rest, 1 / (case.sharpness * rest), np.array([rho * phi]))
    return case.s(rho * phi + rest * y[0], 0), v[0]


def crowded(kinks, width, scale, means) -> tuple[np.ndarray, np.ndarray]:
    """For each mean nodes and weights of a standard normal y and functions of mean + width y: panels of 20 points that
    are at most 1 wide and halve towards each kink, down to half of `scale`."""
    sizes = 0.5 * scale * 2.0 ** np.arange(60)
    steps = np.append(0, sizes[sizes < 18])
    steps = np.concatenate([-steps, steps])
    edges = [np.broadcast_to(np.arange(-9.0, 10), (means.size, 19))]
    edges += [(kink - means[:, None]) / width + steps for kink in kinks]
    edges = np.sort(np.clip(np.concatenate(edges, axis=1), -9, 9), axis=1)
    x, w = leggauss(20)
    half = 0.5 * np.diff(edges, axis=1)[:, :, None]
    y, v = (edges[:, :-1, None] + half * (x + 1)).reshape(means.size, -1), (half * w).reshape(means.size, -1)
    return y, v * np.exp(-(y**2) / 2) / np.sqrt(2 * np.pi)


# --- layers of one input ----------------------------------------------------------------------------------------------


def covariances(case: Function, early: float, rest: float) -> tuple[float, float]:
    """Cov(F, F_m) and Cov(F'', F_m) for F = s^2 of a neuron with variance early + rest and F_m, that of the same neuron
    when its variance was `early`; where nothing is left between both, Cov(F, F) alone. F'' is by parts over the rest,
    so that kinks need no care."""
    if case.frequency:
        square = 2 * case.frequency**2
        covariance = np.exp(-square * rest) * np.expm1(-2 * square * early) ** 2 / 8
        return covariance, -2 * square * covariance
    root, width = np.sqrt(early), np.sqrt(rest)
    if rest == 0:
        x, w = panels(case, root)
        F = case.s(root * x, 0) ** 2
        return (F - F @ w) * F @ w, np.nan
    x, w = (v[0] for v in crowded(case.kinks, root, min(1 / case.sharpness, width) / root, np.zeros(1)))
    y, v = crowded(case.kinks, width, 1 / (case.sharpness * width), root * x)
    F, late = case.s(root * x, 0) ** 2, case.s(root * x[:, None] + width * y, 0) ** 2
    F = F - F @ w
    return F * np.sum(late * v, axis=1) @ w, F * np.sum(late * (y**2 - 1) * v, axis=1) @ w / rest


def one_input(case: Function, k: float, dt: float, layers: int, C_W: float = 2.0) -> dict[str, float]:
    """All statistics of the real network after some layers at order 1/n, by the sums over layers at the head of
    `problems`: S is E[s s] and h, the covariance of the increments, and its free field, as V4 is of phi phi."""
    h, increments, r, curved = dt * C_W, [], np.zeros(0), np.zeros(0)
    FF, K1, ks, found = np.zeros((layers + 1, layers + 1)), 0.0, [k], {}
    for l in range(layers + 1):
        square, slope, bend = alone(case, ks[l])
        chi, hess = slope / ks[l], bend / ks[l] ** 2
        along = [covariances(case, ks[m], sum(increments[m:])) for m in range(l + 1)]
        FF[l, : l + 1] = FF[: l + 1, l] = [c for c, _ in along]
        H, with_F, with_G = r @ FF[:l, :l] @ r, r @ FF[l, :l], r @ curved
        curved = np.append(curved, 2 * ks[l] * slope)
        U1 = chi * K1 + 0.5 * r @ np.array([c for _, c in along[:l]]) + 0.5 * hess * H
        found = {
            "K0": ks[l],
            "V4": 2 * ks[l] ** 2 + 2 * with_G + H,
            "K1": K1,
            "V_GS": curved[l] + with_F + chi * (with_G + H),
            "V_SS": FF[l, l] + 2 * chi * with_F + chi**2 * H,
            "U1": U1,
        }
        increments.append(h * square)
        ks.append(ks[l] + increments[l])
        K1, r = K1 + h * U1, np.append((1 + h * chi) * r, h)
    return found


def flow(a, b) -> tuple[np.ndarray, np.ndarray]:
    """exp(x (0 0; a b)) at nodes x and at last at x = 1, and the weights of the nodes: panels halve towards zero, since
    rates may be of any size."""
    edges = np.append(0, 2.0 ** np.arange(-60, 1))
    t, w = leggauss(20)
    half = 0.5 * np.diff(edges)[:, None]
    x = np.append(edges[:-1, None] + half * (t + 1), 1)
    flows = np.zeros((x.size, 2, 2))
    flows[:, 0, 0], flows[:, 1, 0], flows[:, 1, 1] = 1, a * (np.expm1(b * x) / b if b else x), np.exp(b * x)
    return flows, (half * w).ravel()


def sigma_kernel_layers(case, C_W, k, dt, layers):
    """V4, V_SS, K1, K0 of `SigmaKernel` for one input, its layer written out by hand for z = (phi^2, s^2)."""

    def under(k):
        """Covariance, regression of (s^2)'' on z, noise per Q, and first and second response of E[s^2], under N(0,
        k)."""
        x, w = panels(case, np.sqrt(k))
        s = [case.s(np.sqrt(k) * x, r) for r in range(3)]
        f, slope, bend = s[0] ** 2, 2 * s[0] * s[1], 2 * (s[1] ** 2 + s[0] * s[2])
        z = np.stack([k * x**2, f])
        at_kinks = np.array(case.kinks)
        deltas = 2 * case.s(at_kinks, 0) * case.jumps * np.exp(-(at_kinks**2) / (2 * k)) / np.sqrt(2 * np.pi * k)
        bend_of_z = deltas @ (np.stack([at_kinks**2, case.s(at_kinks, 0) ** 2]) - (z @ w)[:, None]).T
        z = z - (z @ w)[:, None]
        C, gradient = (z * w) @ z.T, np.stack([2 * np.sqrt(k) * x, slope])
        chi, hess = (f * (x**2 - 1)) @ w / (2 * k), (f * (x**4 - 6 * x**2 + 3)) @ w / (4 * k**2)
        scale = np.sqrt(np.diagonal(C))  # s may be linear, so that both directions are one
        inverse = np.linalg.pinv(C / np.outer(scale, scale), rcond=1e-12, hermitian=True) / np.outer(scale, scale)
        return C, inverse @ ((z * w) @ bend + bend_of_z), (gradient * w) @ gradient.T, chi, hess, f @ w

    V, mean = under(k)[0], np.zeros(2)
    for _ in range(layers):
        q = C_W * under(k)[-1]
        _, bend, noise, *_ = under(k + dt * q / 2)
        flows, weights = flow(*(0.5 * dt * q * bend))
        F, noise = flows[-1], np.einsum("x,xij,jk,xlk->il", weights, flows[:-1], dt * q * noise, flows[:-1])
        k = k + dt * q
        _, bend, _, chi, hess, _ = under(k)
        layer = F + dt * C_W * np.array([[0, 1], [0, chi]])
        source = 0.5 * dt * C_W * bend @ (F @ V[:, 1]) + 0.5 * (dt * C_W) ** 2 * hess * V[1, 1]
        mean = layer @ mean + np.array([0, source])
        V = layer @ V @ layer.T + noise
    return V[0, 0], V[1, 1], mean[0], k
