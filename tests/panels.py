"""Gaussian moments of any activation by panels of Gauss-Legendre nodes in plain NumPy: the oracle of stated errors.

The panels have nodes of their own, 20 points each, and halve towards each kink and towards zero. Nothing here is
computed by the package; its activations are only named.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial.legendre import leggauss
from problems import SMOOTH, softplus, tanh

import kernel_eft_jax as keft


class Function(NamedTuple):
    """An activation, its derivatives s(x, r) in NumPy, the largest r among them, the places at which it changes, and
    how quickly."""

    activation: keft.Activation
    s: Callable
    orders: int = 4
    kinks: tuple[float, ...] = (0.0,)
    sharpness: float = 1.0
    frequency: float = 0.0  # of a sine, whose moments are known and which panels of any size would miss


def sine(scale):
    return lambda x, r: scale**r * np.sin(scale * x + r * np.pi / 2)


def ramp(below):
    return lambda x, r: np.where(x > 0, x, below * x) if r == 0 else np.where(x > 0, 1.0, below)


def elu(scale, alpha):
    return lambda x, r: scale * np.where(x > 0, (x, 1.0)[r], alpha * (np.exp(np.minimum(x, 0)) - (r == 0)))


FUNCTIONS = {name: Function(case.activation, case.s) for name, case in SMOOTH.items()} | {
    "Softplus(20)": Function(keft.Softplus(20.0), softplus(20), sharpness=20.0),
    "Smooth(softplus 20)": Function(keft.Smooth(lambda x: jax.nn.softplus(20 * x) / 20), softplus(20), sharpness=20.0),
    "Smooth(sin 10x)": Function(keft.Smooth(lambda x: jnp.sin(10 * x)), sine(10), frequency=10.0),
    "Sin": Function(keft.Sin(), sine(1), frequency=1.0),
    "tanh(x - 2)": Function(keft.Smooth(lambda x: jnp.tanh(x - 2)), lambda x, r: tanh(x - 2, r), kinks=(2.0,)),
    "ReLU": Function(keft.ReLU(), ramp(0.0), 1),
    "LeakyReLU": Function(keft.LeakyReLU(0.2), ramp(0.2), 1),
    "Abs": Function(keft.Abs(), ramp(-1.0), 1),
    "Smooth(abs)": Function(keft.Smooth(jnp.abs), ramp(-1.0), 1),
    "Smooth(elu)": Function(keft.Smooth(jax.nn.elu), elu(1.0, 1.0), 1),
    "SELU": Function(keft.SELU(), elu(1.0507009873554805, 1.6732632423543772), 1),
    "HardTanh": Function(
        keft.HardTanh(), lambda x, r: np.clip(x, -1, 1) if r == 0 else 1.0 * (np.abs(x) < 1), 1, (-1.0, 1.0)
    ),
    "HardSwish": Function(
        keft.HardSwish(),
        lambda x, r: (
            x * np.clip(x + 3, 0, 6) / 6 if r == 0 else np.where(np.abs(x) < 3, (2 * x + 3) / 6, 1.0 * (x > 0))
        ),
        1,
        (-3.0, 3.0),
    ),
}


def panels(case: Function, root: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights for a standard normal variable x and functions of root x; panels of 20 points halve towards
    each kink."""
    sizes = 0.5 / (case.sharpness * root) * 2.0 ** np.arange(60)
    steps = np.append(0, sizes[sizes < 18])
    edges = [np.arange(-18, 19) * 0.5] + [c / root + sign * steps for c in case.kinks for sign in (-1, 1)]
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
    size = w**2 * abs(k_ab)
    largest = np.exp(size - w**2 * k)
    less, more = -np.sign(k_ab) * largest * np.expm1(-2 * size), largest * (1 + np.exp(-2 * size))
    difference, total = (np.cos(p).round() for p in (phase[:, None] - phase, phase[:, None] + phase))
    power = w ** np.add.outer(np.arange(5), np.arange(5))
    return 0.25 * ((difference + total) * less + (difference - total) * more) * power


def true_moments(case: Function, k: float, k_ab: float) -> np.ndarray:
    """E[s^(r)_a s^(q)_b] for the orders that the expansion needs: by the product of two panel rules, or, for
    correlations above 0.95, by a panel rule for phi_a and a fine equidistant rule for the rest of phi_b."""
    if case.frequency:
        return sine_moments(case.frequency, k, k_ab)
    moments, root, rho = np.full((5, 5), np.nan), np.sqrt(k), k_ab / k
    x, w = panels(case, root)
    if abs(rho) <= 0.95 and k > 10:
        case = case._replace(orders=1)  # higher derivatives on the density, where those of s are local and cancel
    s = [case.s(root * x, r) * w for r in range(case.orders + 1)]
    if abs(rho) <= 0.95:
        parts, density = by_parts(x[:, None], x[None, :], rho), {}
        for r, q in ORDERS:
            rest = max(r - case.orders, 0), max(q - case.orders, 0)
            if rest not in density:
                density[rest] = parts(*rest)
            value = s[min(r, case.orders)] @ density[rest] @ s[min(q, case.orders)]
            moments[r, q] = value / root ** sum(rest)
        return moments
    rest = np.sqrt((k - abs(k_ab)) * (k + abs(k_ab))) / k
    step = min(0.25, 0.2 / (case.sharpness * max(rest, 1e-9) * root))
    y = np.arange(-int(8.5 / step), int(8.5 / step) + 1) * step if rest else np.zeros(1)
    v = np.exp(-(y**2) / 2) * step / np.sqrt(2 * np.pi) if rest else np.ones(1)
    phi = root * (rho * x[:, None] + rest * y)
    means = [case.s(phi, q) @ v for q in range(case.orders + 1)]
    moments = np.array([[a @ b for b in means] for a in s])
    if k > 10:  # derivatives of order three and four cancel: they are removed by parts
        phi_a, (once, both) = root * x, (root * x * s[2] @ means[1], s[2] @ means[2])
        moments[3, 1] = moments[1, 3] = (once - k_ab * both) / k
        twice = (phi_a**2 - k) * s[2] @ means[0]
        moments[4, 0] = moments[0, 4] = (twice - 2 * k_ab * once + k_ab**2 * both) / k**2
    return moments


def alone(case: Function, k: float) -> np.ndarray:
    """E[s^2], k times its first and k^2 times its second derivative in k: by parts if k is large or s has kinks, so
    that no digits are lost by cancellation."""
    if case.frequency:
        z = case.frequency**2 * k
        return np.array([-np.expm1(-2 * z) / 2, z * np.exp(-2 * z), -2 * z**2 * np.exp(-2 * z)])
    x, w = panels(case, np.sqrt(k))
    s = [case.s(np.sqrt(k) * x, r) for r in range(case.orders + 1)]
    if case.orders < 4 or k > 10:
        slope = np.sqrt(k) * x * s[0] * s[1]
        return np.array([s[0] ** 2, slope, slope * (x**2 - 3) / 2]) @ w
    return (
        np.array(
            [s[0] ** 2, k * (s[1] ** 2 + s[0] * s[2]), k**2 * (1.5 * s[2] ** 2 + 2 * s[1] * s[3] + s[0] * s[4] / 2)]
        )
        @ w
    )


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
