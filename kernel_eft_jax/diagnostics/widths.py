r"""Kernels of networks of several widths against the theory: do they collapse onto it?

At each width n the sampled n Cov(G, G) and n (mean G - K0) estimate $V_4 + O(1/n)$ and $K_1 + O(1/n)$. If the theory
describes the networks, the differences fall like 1/n: one coefficient for each entry explains all widths, and a
chi-square tests this. The networks may come from any framework, as arrays of kernels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import ArrayLike, Float, Int
from scipy.special import fdtrc

from ..checks import LEAST_NETWORKS, ON_HOST, check_count, check_kind, check_untraced, to_numpy
from ..ensemble.own_kernels import check_networks
from ..ensemble.statistics import interval, least_V4_error
from ..pairs import pack_covariance
from ..showing import Shown, rounded
from ..trajectory import Solution


class AtWidths(eqx.Module):
    """V4 and K1 of sampled kernels at each width, or their standard errors."""

    V4: Float[np.ndarray, "W T N N N N"]
    K1: Float[np.ndarray, "W T N N"]


class WidthCheck(AtWidths, Shown):
    """V4 and K1 of sampled kernels at each width, standard errors, and the theory that they should approach."""

    stderr: AtWidths
    theory: Solution
    widths: Int[np.ndarray, " W"]
    networks: Int[np.ndarray, " W"]

    def p_value(self, quantity: str = "V4") -> float:
        r"""Probability of differences from the theory at least this large, at the last depth, if they are c / n plus
        noise.

        For each entry c is fitted. What is left of chi-square, divided by W - 1, has an F distribution: W - 1 degrees
        of freedom in the numerator, and in the denominator one less than the smallest number of networks of a width.
        The probability is that of the least likely entry, times the number of entries (Bonferroni), so that entries may
        be correlated. If it is small, below 0.01 say, the networks are not those of the theory, or too narrow for 1/n
        to be the whole difference. V4 is compared as the logarithms of its variances and the correlations between them,
        $\operatorname{artanh} \rho$, whose noise hardly depends on their values: so the probability holds from 16
        networks a width on. Raises ValueError for fewer than two widths.
        """
        if len(self.widths) < 2:
            raise ValueError(
                "Argument `kernels` must hold two widths or more to find a difference that falls like 1/n."
            )
        check_quantity(quantity)
        with np.errstate(divide="ignore", invalid="ignore"):
            gap, error = self._stable_V4() if quantity == "V4" else self._packed_K1()
        if not (error > 0).all():  # an entry without scatter, which no network of the theory has
            return 0.0
        shape = 1 / (self.widths[:, None] * error)
        shape = shape / np.linalg.norm(shape, axis=0)
        gap = gap / error
        chi2, free = np.sum(gap**2, axis=0) - np.sum(shape * gap, axis=0) ** 2, len(self.widths) - 1
        return float(min(1.0, chi2.size * fdtrc(free, self.networks.min() - 1, chi2.max() / free)))

    def interval(self, quantity: str = "V4", level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends of confidence intervals, of the shape of the quantity: symmetric, for variances in V4 in
        their logarithm."""
        value, error = (getattr(x, check_quantity(quantity)) for x in (self, self.stderr))
        free = (self.networks - 1).reshape(-1, *(1,) * (value.ndim - 1))
        return interval(value, error, free, level, logarithm=quantity == "V4")

    def _packed_K1(self):
        """Differences of K1 from the theory and their errors, (W, P)."""
        a, b = np.triu_indices(self.K1.shape[-1])
        theory = np.asarray(self.theory.K1, np.float64)[-1, a, b]
        return self.K1[:, -1, a, b] - theory, self.stderr.K1[:, -1, a, b]

    def _stable_V4(self):
        """Differences of V4 from the theory, as logarithms of variances and artanh of correlations, and their errors,
        (W, entries).

        The variance of artanh of a correlation is (1 + k) / (B - 3), where 3 k is the excess kurtosis, known from the
        errors of the two variances. Correlations of one, as of repeated inputs, are left out: they hold no more
        information.
        """
        V, stderr, theory = map(
            pack_covariance, (self.V4[:, -1], self.stderr.V4[:, -1], np.asarray(self.theory.V4, np.float64)[-1])
        )
        p, q = np.triu_indices(len(theory), 1)
        variances, right = np.einsum("wpp->wp", V), np.diagonal(theory)
        error = np.einsum("wpp->wp", stderr) / variances
        k = np.maximum((self.networks[:, None] * error**2 - 2) / 3, 0)
        correlations = V[:, p, q] / np.sqrt(variances[:, p] * variances[:, q])
        expected = theory[p, q] / np.sqrt(right[p] * right[q])
        told = np.abs(expected) < 1 - 1e-6
        bound = 1 - 1e-12
        z = np.arctanh(np.clip(correlations[:, told], -bound, bound)) - np.arctanh(expected[told])
        z_error = np.sqrt((1 + np.maximum(k[:, p], k[:, q])[:, told]) / (self.networks[:, None] - 3))
        return np.concatenate([np.log(variances / right), z], axis=1), np.concatenate([error, z_error], axis=1)

    def __repr__(self) -> str:
        head = f"{'n':>8} {'networks':>10} {'V4[00,00]':>20} {'K1[00]':>20}"
        last = (x[:, -1] for x in (self.V4, self.stderr.V4, self.K1, self.stderr.K1))
        rows = [
            f"{n:8d} {count:10d} {rounded(V.flat[0], dV.flat[0]):>20} {rounded(k.flat[0], dk.flat[0]):>20}"
            for n, count, V, dV, k, dk in zip(self.widths, self.networks, *last, strict=True)
        ]
        V4, K1 = (float(self.theory.significant(name)[0][-1].flat[0]) for name in ("V4", "K1"))
        theory = f"{'theory':>8} {'':>10} {V4:>20.5g} {K1:>20.4g}"
        verdict = [f"p = {self.p_value(q):.2g} for {q}" for q in ("V4", "K1")] if len(self.widths) > 1 else []
        return "\n".join([head, *rows, theory, *verdict, f"theory: {self.theory.closure!r}"])


def width_check(kernels: Mapping[int, Float[np.ndarray, "B T N N"]], theory: Solution) -> WidthCheck:
    """Compare empirical kernels of networks of several widths with a theory at the same depths.

    Args:
        kernels: By width n the kernels G of networks, one network a row, at the depths of `theory`. `sample_kernels`
            makes such arrays, and so can `(phi @ phi.T) / n` in any framework.
        theory: What `solve` found at the same depths.

    Returns:
        V4 and K1 at each width with their errors, and p-values.

    Raises:
        ValueError: If shapes do not fit, if kernels are not finite or no kernels, and if networks are fewer than 16 or
            repeat each other.
    """
    check_untraced("width_check", ON_HOST, kernels, theory)
    check_kind(theory, Solution, "theory")
    K0 = np.asarray(theory.K0, np.float64)
    depths = [f"t = {t:.6g}" for t in theory.ts] if theory.layers is None else layer_names(theory.layers)
    columns: list[Any] = [
        (width, len(G), *_moments(G, K0, width)) for width, G in kernels_by_width(kernels, K0.shape, depths).items()
    ]
    widths, networks, V4, V4_stderr, K1, K1_stderr = (np.stack(column) for column in zip(*columns, strict=True))
    return WidthCheck(V4, K1, AtWidths(V4_stderr, K1_stderr), theory, widths, networks)


def layer_names(layers: Sequence[int]) -> list[str]:
    """Layers as messages name them."""
    return [f"layer {layer}" for layer in layers]


def kernels_by_width(
    kernels: Mapping[int, Float[ArrayLike, "B T N N"]],
    shape: tuple[int, ...],
    depths: Sequence[str],
    name: str = "kernels",
    remedy: str = "Solve at the depths of your kernels.",
) -> dict[int, Float[np.ndarray, "B T N N"]]:
    """Kernels of networks by their width, narrow ones first, in float64; `shape` is that of one network, (T, N, N), and
    `depths` are the names of its depths. `remedy` is what the message says of another shape."""
    law = f"Argument `{name}` must map widths to arrays of kernels, {{64: G}} for networks of 64 neurons"
    if not isinstance(kernels, Mapping):
        raise ValueError(f"{law}, but is a {type(kernels).__name__}.")
    if not kernels:
        raise ValueError(f"{law}, but is empty.")
    checked = {}
    for width, value in sorted((check_count(width, f"width` in `{name}"), value) for width, value in kernels.items()):
        G = to_numpy(value, name)
        if G.ndim != 4 or G.shape[1:] != shape:
            raise ValueError(
                f"Argument `{name}` must hold arrays of shape (networks, layers, inputs, inputs) = (networks, "
                f"{', '.join(map(str, shape))}), but for width {width} the shape is {G.shape}. "
                f"{remedy}"
            )
        if len(G) < LEAST_NETWORKS:
            raise ValueError(
                f"Argument `{name}` needs {LEAST_NETWORKS} networks or more to show their scatter, but width {width} "
                f"has {len(G)}."
            )
        checked[width] = check_networks(G, name, width, depths, f" of width {width}", zeros=True)
    return checked


def check_quantity(quantity: str) -> str:
    """The name of a quantity that is compared."""
    if quantity not in ("V4", "K1"):
        raise ValueError(f'Argument `quantity` must be "V4" or "K1", but is {quantity!r}.')
    return quantity


def _moments(G, K0, width):
    """V4 and K1 of kernels with their standard errors, by the scatter from network to network.

    With few networks the scatter is too small whenever V4 is too small. So the error of V4 is at least that of Wishart
    matrices.
    """
    B = len(G)
    d = G - G.mean(axis=0)
    V4, square = (np.empty((*K0.shape, *K0.shape[1:])) for _ in range(2))
    for t in range(len(K0)):  # one depth at a time: all products would be N^4 numbers a network and depth
        V4[t] = np.einsum("xab,xcd->abcd", d[:, t], d[:, t]) / (B - 1)
        square[t] = np.einsum("xab,xcd->abcd", d[:, t] ** 2, d[:, t] ** 2) / (B - 1)
    V4_stderr = np.maximum(np.sqrt(np.maximum(square - V4**2, 0) / B), least_V4_error(V4, B, width))
    return width * V4, width * V4_stderr, width * (G.mean(axis=0) - K0), width * G.std(axis=0, ddof=1) / np.sqrt(B)
