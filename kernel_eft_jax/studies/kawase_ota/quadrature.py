r"""The bias of a 32-point Gauss-Hermite rule, step by step: E[tanh^2], chi, V4, and what it does to the conclusion.

The rule integrates $f(\sqrt k\, x)$ as if it were a polynomial; tanh has poles at a distance of pi/2 from the real line, which for k = 4 lie at
0.8 in x, so that the error falls slowly with the number of points. Derivatives, which are chi, are worse than values.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

import kernel_eft_jax as keft

from .euler import Euler
from .gauss_hermite import GaussHermite, tanh_squared
from .item import Drawing, Item, Row, Section, Value, entry, first
from .main_job import MAIN, PUBLISHED, TANH, Study, Theory
from .names import G_ONLY, NETWORKS, PUBLISHED_NETWORKS, TOWER

POINTS = (32, 64, 128)


class Bias(NamedTuple):
    """Errors of rules against converged expectations, over variances k, and the G-only theory of one input by each."""

    k: Float[np.ndarray, " M"]
    value: dict[int, Float[np.ndarray, " M"]]  # of E[tanh^2]
    slope: dict[int, Float[np.ndarray, " M"]]  # E[(tanh^2)''] by each rule
    exact_slope: Float[np.ndarray, " M"]
    solutions: dict[int, keft.Solution]


def bias(study: Study) -> Bias:
    """The rules of `POINTS` points at the variances of the main job, and its theory by each of them."""
    k = first(study.theories[G_ONLY].K0)
    rules = {m: GaussHermite(TANH, m) for m in POINTS}
    value, slope = tanh_squared(TANH, k)
    found = {m: tanh_squared(rule, k) for m, rule in rules.items()}
    return Bias(
        k,
        {m: by_rule - value for m, (by_rule, _) in found.items()},
        {m: by_rule for m, (_, by_rule) in found.items()},
        slope,
        {m: Theory(Euler(), rule, 1).solve(study.setting, study.sampled.layers) for m, rule in rules.items()},
    )


def quadrature_item(study: Study) -> Item:
    """The published code with other numbers of points, and the figure of the quadrature bias."""
    found, coarse = bias(study), MAIN._replace(K0=MAIN.K0[:1, :1], depth=200, eps=0.1)

    def at_T2(activation):
        return entry(Theory(Euler(), activation, 1).solve(coarse, np.array([coarse.depth])).V4)

    converged = at_T2(TANH)
    rows = [
        Row(f"V4[00,00] at t = 2, eps = 0.1, {m} points", Value(value), at_T2(GaussHermite(TANH, int(m))), converged)
        for m, value in PUBLISHED["V4_0000_T2_eps_0.10_of_the_published_code_by_points"].items()
    ]
    V4 = {f"{m} points": entry(solution.V4).value for m, solution in found.solutions.items()}
    V4 |= {"converged": entry(study.theories[G_ONLY].V4).value}
    networks = entry(study.V4()[0]).value
    steps = "; ".join(f"{label}: {v:.2f}, {100 * (v / networks - 1):.1f} %" for label, v in V4.items())
    why = (
        f"The published code itself, and this pipeline. At the variance of t = 2, {found.k[-1]:.2f}, the 32-point rule is off by "
        f"{found.value[32][-1]:.1e} in E[tanh^2] and gives {found.slope[32][-1]:.4f} for E[(tanh^2)''], which is {found.exact_slope[-1]:.4f}: "
        "transport all but stops, and V4 stays behind. With more points the theory moves to the converged one and the networks, with nothing "
        f"else changed. V4[00,00] at t = 2, eps = {study.setting.eps:g}, and its distance from the networks here: {steps}."
    )
    section = Section("The published code, with 64 points in place of 32", why, rows, "published code")
    results = {
        f"theory-G-only-{m}-points": (solution, {"points": m, "eps": study.setting.eps})
        for m, solution in found.solutions.items()
    }
    return Item([section], {"quadrature-bias": _figure(study, found)}, results)


def _figure(study, found):
    ts = study.sampled.ts
    V4, stderr = (first(x) for x in study.V4())
    theories = {f"{m}-point rule": first(s.V4) for m, s in found.solutions.items()}
    theories |= {G_ONLY: first(study.theories[G_ONLY].V4), TOWER: first(study.theories[TOWER].V4)}
    published = PUBLISHED["V4_0000_n64"]
    dots = (
        np.array([p["t"] for p in published]),
        np.array([p["sampled"] for p in published]),
        np.zeros(len(published)),
    )
    panels = {
        r"error of the rule for $E[\tanh^2]$, along $K_0(t)$": {
            f"{m}-point rule": (ts, error) for m, error in found.value.items()
        },
        r"$\chi \propto E[(\tanh^2)'']$ along $K_0(t)$": {
            **{f"{m}-point rule": (ts, slope) for m, slope in found.slope.items()},
            G_ONLY: (ts, found.exact_slope),
        },
        r"$V_{4;00,00}$ that follows": {
            **{label: (ts, value) for label, value in theories.items()},
            NETWORKS: (ts, V4, stderr),
            PUBLISHED_NETWORKS: dots,
        },
        "theory / networks $-$ 1 (%)": {
            **{label: (ts, 100 * (value / V4 - 1)) for label, value in theories.items()},
            NETWORKS: (ts, 0 * ts, 100 * stderr / V4),
        },
    }
    return Drawing(f"What a quadrature rule does to $V_4$\n{study.setting}", panels)
