r"""The bias of a 32-point Gauss-Hermite rule, step by step: E[tanh^2], chi, V4, and what it does to the conclusion.

The rule integrates $f(\sqrt k\, x)$ as if it were a polynomial; tanh has poles at a distance of pi/2 from the real line, which for k = 4 lie at
0.8 in x, so that the error falls slowly with the number of points. Derivatives, which are chi, are worse than values.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ..activations import Activation, Tanh
from ..closures import GOnly
from ..diagnostics.equations import expansions
from ..gauss_hermite import GaussHermite
from ..model import Model
from ..trajectory import Solution, solve
from .main_job import C_W, G_ONLY, QUADRATURE, TOWER, Study
from .published import PUBLISHED, Item, Row, Section

POINTS = (32, 64, 128)
# V4[00,00] at t = 2, eps = 0.1 of the published code with its own 32 points, and with 64 put in their place.
RERUN = {32: 42.83, 64: 47.36}


class Bias(NamedTuple):
    """Errors of rules against converged expectations, over variances k, and the G-only theory of one input by each."""

    k: Float[np.ndarray, " M"]
    value: dict[int, Float[np.ndarray, " M"]]  # of E[tanh^2]
    slope: dict[int, Float[np.ndarray, " M"]]  # E[(tanh^2)''] by each rule
    exact_slope: Float[np.ndarray, " M"]
    solutions: dict[int, Solution]
    coarse: dict[int, Solution]  # at eps = 0.1


def bias(study: Study) -> Bias:
    """The rules of `POINTS` points at the variances of the main job, and its theory by each of them."""
    ts, eps = study.sampled.ts, study.setting.eps
    K0 = study.setting.K0[:1, :1]
    k = np.asarray(study.theories[G_ONLY].K0)[:, 0, 0]
    rules = {m: GaussHermite(Tanh(), m) for m in POINTS}
    exact = _tanh_squared(Tanh(), k)
    found = {m: _tanh_squared(rule, k) for m, rule in rules.items()}
    return Bias(
        k,
        {m: value - exact[0] for m, (value, _) in found.items()},
        {m: slope for m, (_, slope) in found.items()},
        exact[1],
        {m: solve(Model(rule, C_W), K0, ts, closure=GOnly(), eps=eps) for m, rule in rules.items()},
        {m: solve(Model(rules[m], C_W), K0, np.array([2.0]), closure=GOnly(), eps=0.1) for m in RERUN},
    )


def _tanh_squared(activation: Activation, k):
    """E[tanh^2] and E[(tanh^2)''] at each variance."""
    value, slope, _ = expansions(Model(activation, 1.0), k[:, None])
    return value[:, 0], 2 * slope[:, 0].sum(axis=-1)


def quadrature_item(study: Study) -> Item:
    """The table and the figure of the quadrature bias."""
    found = bias(study)
    V4, stderr = (x[:, 0, 0, 0, 0] for x in study.V4())
    exact = np.asarray(study.theories[G_ONLY].V4)[:, 0, 0, 0, 0]
    rerun = [
        Row(f"V4[00,00] at t = 2, eps = 0.1, {m} points", value, None, float(found.coarse[m].V4[-1, 0, 0, 0, 0]), None)
        for m, value in RERUN.items()
    ]
    published = PUBLISHED["theory_at_T2"]["V4_0000"], PUBLISHED["V4_0000_T2_by_width"][0]["relative_error"]
    last = {m: float(s.V4[-1, 0, 0, 0, 0]) for m, s in found.solutions.items()}
    rows = [
        Row(f"V4[00,00] at t = 2, {m} points", published[0], None, value, None, QUADRATURE) for m, value in last.items()
    ]
    rows.append(Row("V4[00,00] at t = 2, converged", published[0], None, float(exact[-1]), None, QUADRATURE))
    rows += [
        Row(
            f"error of V4 at t = 2, {label}",
            published[1],
            None,
            value / float(V4[-1]) - 1,
            float(stderr[-1] / V4[-1]),
            QUADRATURE,
        )
        for label, value in ([(f"{m} points", v) for m, v in last.items()] + [("converged", float(exact[-1]))])
    ]
    k = found.k[-1]
    why = (
        f"At the variance of t = 2, {k:.2f}, the 32-point rule is off by {found.value[32][-1]:.1e} in E[tanh^2] and gives "
        f"{found.slope[32][-1]:.4f} for E[(tanh^2)''], which is {found.exact_slope[-1]:.4f}: transport all but stops, and V4 stays "
        "behind. With more points the theory moves to the converged one and the networks, with nothing else changed."
    )
    sections = [
        Section(
            "The published code, re-run with 64 points in place of 32",
            "The published code itself, and this pipeline.",
            rerun,
            "published code",
        ),
        Section("Quadrature, step by step", why, rows),
    ]
    results = {
        f"theory-G-only-{m}-points": (solution, {"points": m, "eps": study.setting.eps})
        for m, solution in found.solutions.items()
    }
    return Item(sections, {"quadrature-bias": _figure(study, found, V4, stderr, exact)}, results)


def _figure(study, found, V4, stderr, exact):
    from ..diagnostic_plots import Line, plot_panels

    ts = np.asarray(study.sampled.ts)
    points = {m: f"{m}-point rule" for m in POINTS}
    tower = np.asarray(study.theories[TOWER].V4)[:, 0, 0, 0, 0]
    published = PUBLISHED["V4_0000_n64"]
    sampled = Line(
        np.array([p["t"] for p in published]), np.array([p["sampled"] for p in published]), np.zeros(len(published))
    )
    theories = {label: np.asarray(found.solutions[m].V4)[:, 0, 0, 0, 0] for m, label in points.items()} | {
        "converged": exact
    }
    panels = {
        r"1. error of the rule for $E[\tanh^2]$, along $K_0(t)$": {
            label: Line(ts, found.value[m]) for m, label in points.items()
        },
        r"2. $\chi \propto E[(\tanh^2)'']$ along $K_0(t)$": {
            label: Line(ts, found.slope[m]) for m, label in points.items()
        }
        | {"converged": Line(ts, found.exact_slope)},
        r"3. $V_{4;00,00}$ that follows": {label: Line(ts, V) for label, V in theories.items()}
        | {f"networks, n = {study.setting.width}": Line(ts, V4, stderr), "published networks, n = 64": sampled},
        "4. theory less networks (%)": {label: Line(ts, 100 * (V / V4 - 1)) for label, V in theories.items()}
        | {"exact at order 1/n": Line(ts, 100 * (tower / V4 - 1))},
    }
    return plot_panels(panels, title=f"What a quadrature rule does to $V_4$\n{study.setting}", ylabel="", columns=2)
