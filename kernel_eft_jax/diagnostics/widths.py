r"""Kernels of networks of several widths against the theory: do they collapse onto it?

At each width n the sampled n Cov(G, G) and n (mean G - K0) estimate $V_4 + O(1/n)$ and $K_1 + O(1/n)$. If the theory describes the networks, what is
left falls like 1/n: one coefficient for each entry explains all widths, and a chi-square says whether it does. Any networks will
do, from any framework: arrays of kernels go in.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..trajectory import Solution

LEAST = 16


class WidthCheck(NamedTuple):
    """V4 and K1 of sampled kernels at each width, standard errors, and the theory that they should approach."""

    theory: Solution
    widths: Int[np.ndarray, " W"]
    networks: Int[np.ndarray, " W"]
    V4: Float[np.ndarray, "W T N N N N"]
    V4_stderr: Float[np.ndarray, "W T N N N N"]
    K1: Float[np.ndarray, "W T N N"]
    K1_stderr: Float[np.ndarray, "W T N N"]

    def p_value(self, quantity: str = "V4") -> float:
        r"""Probability of differences from the theory at least this large, at the last depth, if they are c / n and noise.

        For each entry c is fitted and the chi-square of what is left has W - 1 degrees of freedom; of the entries the least likely
        counts, times their number (Bonferroni), so that entries may be correlated. Below 0.01, say: the networks are not those of
        the theory, or too narrow for 1/n to be the whole difference. Raises ValueError for fewer than two widths.
        """
        from scipy import special  # loads for a tenth of a second

        if len(self.widths) < 2:
            raise ValueError(
                "Argument `kernels` must hold two widths or more to tell a difference that falls like 1/n."
            )
        value, error = (
            getattr(self, name)[:, -1].reshape(len(self.widths), -1) for name in (quantity, f"{quantity}_stderr")
        )
        gap = (value - np.asarray(getattr(self.theory, quantity)[-1]).ravel()) / error
        shape = 1 / (self.widths[:, None] * error)
        shape = shape / np.linalg.norm(shape, axis=0)
        chi2 = np.sum(gap**2, axis=0) - np.sum(shape * gap, axis=0) ** 2
        entries = np.unique(np.round(chi2, 9))  # symmetric copies count once
        return float(min(1.0, entries.size * special.chdtrc(len(self.widths) - 1, chi2.max())))

    def __str__(self) -> str:
        head = f"{'n':>8} {'networks':>10} {'V4[00,00]':>20} {'K1[00]':>20}"
        rows = [
            f"{n:8d} {count:10d} {_pm(V[-1, 0, 0, 0, 0], dV[-1, 0, 0, 0, 0]):>20} {_pm(k[-1, 0, 0], dk[-1, 0, 0]):>20}"
            for n, count, V, dV, k, dk in zip(*self[1:], strict=True)
        ]
        V4, K1 = float(self.theory.V4[-1, 0, 0, 0, 0]), float(self.theory.K1[-1, 0, 0])
        last = f"{'theory':>8} {'':>10} {V4:>20.5g} {K1:>20.4g}"
        verdict = [f"p = {self.p_value(q):.2g} for {q}" for q in ("V4", "K1")] if len(self.widths) > 1 else []
        return "\n".join([head, *rows, last, *verdict])


def width_check(kernels: Mapping[int, Float[np.ndarray, "B T N N"]], theory: Solution) -> WidthCheck:
    """Compare empirical kernels of networks of several widths with a theory at the same depths.

    `kernels[n]` has the kernels G of the networks of width n, one network a row, at the depths of `theory` (`sample_kernels` makes such
    arrays, and so can `(phi @ phi.T) / n` in any framework). Raises ValueError if shapes do not fit, kernels are not finite, or
    networks are fewer than 16.
    """
    if not kernels:
        raise ValueError("Argument `kernels` must map widths to arrays of kernels, but is empty.")
    K0 = np.asarray(theory.K0, np.float64)
    columns: list[Any] = []
    for width in sorted(kernels):
        G = np.asarray(kernels[width], np.float64)
        if G.ndim != 4 or G.shape[1:] != K0.shape:
            raise ValueError(
                f"Argument `kernels` must hold arrays of shape (networks, {', '.join(map(str, K0.shape))}), networks first and the depths "
                f"and inputs of the theory after, but for width {width} the shape is {G.shape}."
            )
        if len(G) < LEAST:
            raise ValueError(
                f"Argument `kernels` needs {LEAST} networks or more to show their scatter, but width {width} has {len(G)}."
            )
        if not np.isfinite(G).all():
            raise ValueError(f"Argument `kernels` must be finite, but for width {width} it is not.")
        columns.append((width, len(G), *_moments(G, K0, width)))
    return WidthCheck(theory, *(np.stack([np.asarray(column[i]) for column in columns]) for i in range(6)))


def _moments(G, K0, width):
    """V4 and K1 of kernels with their standard errors, by the scatter from network to network."""
    B = len(G)
    d = G - G.mean(axis=0)
    V4, square = (np.empty((*K0.shape, *K0.shape[1:])) for _ in range(2))
    for t in range(len(K0)):  # a depth at a time: the products of all would take N^4 numbers a network and depth
        V4[t] = np.einsum("xab,xcd->abcd", d[:, t], d[:, t]) / (B - 1)
        square[t] = np.einsum("xab,xcd->abcd", d[:, t] ** 2, d[:, t] ** 2) / (B - 1)
    V4_stderr = np.sqrt(np.maximum(square - V4**2, 0) / B)
    return width * V4, width * V4_stderr, width * (G.mean(axis=0) - K0), width * G.std(axis=0, ddof=1) / np.sqrt(B)


def _pm(value, error):
    return f"{value:.4g} ± {error:.1g}"
