r"""The bias of a 32-point Gauss-Hermite rule, step by step: E[tanh^2], chi, V4, and what it does to the conclusion.

The rule is exact for polynomials in x. But tanh has poles at a distance of pi/2 from the real line, which for k = 4 lie
at 0.8 in x: so the error falls slowly with the number of points. Derivatives, such as chi, have larger errors than
values.
"""

import numpy as np

from .euler import Euler
from .gauss_hermite import GaussHermite, tanh_squared
from .item import Chapter, Drawing, Item, Row, WithError, entry, first
from .main_job import MAIN, PUBLISHED, TANH, Study, Theory
from .names import G_ONLY, NETWORKS, PUBLISHED_NETWORKS, TOWER

RULES = {f"{m}-point rule": GaussHermite(TANH, m) for m in (32, 64, 128)} | {G_ONLY: TANH}


def quadrature_item(study: Study) -> Item:
    """The published code with other numbers of points, and each step from the rule to V4, along the variances of the
    main job."""
    k = first(study.theories[G_ONLY].K0)
    squares = {name: tanh_squared(rule, k) for name, rule in RULES.items()}
    solutions = {
        name: Theory(Euler(), rule, 1).solve(study.setting, study.sampled.layers) for name, rule in RULES.items()
    }
    coarse = MAIN._replace(K0=MAIN.K0[:1, :1], depth=200, eps=0.1)

    def at_T2(activation):
        return entry(Theory(Euler(), activation, 1).solve(coarse, np.array([coarse.depth])).V4)

    converged = at_T2(TANH)
    rows = [
        Row(
            f"V4[00,00] at t = 2, eps = 0.1, {m} points", WithError(value), at_T2(GaussHermite(TANH, int(m))), converged
        )
        for m, value in PUBLISHED["V4_0000_T2_eps_0.10_of_the_published_code_by_points"].items()
    ]
    networks, V4 = entry(study.V4()[0]).value, {name: entry(s.V4).value for name, s in solutions.items()}
    steps = "; ".join(f"{name}: {v:.2f}, {100 * (v / networks - 1):.1f} %" for name, v in V4.items())
    (value, second), (exact, exact_second) = (np.array(squares[name])[:, -1] for name in ("32-point rule", G_ONLY))
    why = (
        "The published code itself, beside the same rules here. At t = 2 the variance is "
        f"{k[-1]:.2f}. There E[tanh^2] of the 32-point rule is off by {value - exact:.1e}, and its E[(tanh^2)''] is "
        f"{second:.4f}, where the converged value is {exact_second:.4f}. So transport all but stops, and V4 stays "
        "behind. With more points, and nothing else changed, the theory moves to the converged theory and to the "
        f"networks. V4[00,00] at t = 2, eps = {study.setting.eps:g}, and its distance from the networks here: {steps}."
    )
    section = Chapter("The published code, with 64 points in place of 32", why, rows, "published code")
    results = {
        f"theory-GOnly-{rule.points}-points": solutions[name]
        for name, rule in RULES.items()
        if isinstance(rule, GaussHermite)
    }
    return Item([section], {"quadrature-bias": _figure(study, squares, solutions)}, results)


def _figure(study, squares, solutions):
    ts, (V4, stderr) = study.sampled.ts, (first(x) for x in study.V4())
    theories = {name: first(s.V4) for name, s in (solutions | {TOWER: study.theories[TOWER]}).items()}
    published = PUBLISHED["V4_0000_n64"]
    dots = [np.array([p[name] for p in published]) for name in ("t", "sampled")]
    panels = {
        r"error of the rule for $E[\tanh^2]$, along $K_0(t)$": {
            name: (ts, value - squares[G_ONLY][0]) for name, (value, _) in squares.items() if name != G_ONLY
        },
        r"$\chi \propto E[(\tanh^2)'']$ along $K_0(t)$": {name: (ts, second) for name, (_, second) in squares.items()},
        r"$V_{4;00,00}$ that follows": {
            **{name: (ts, value) for name, value in theories.items()},
            NETWORKS: (ts, V4, stderr),
            PUBLISHED_NETWORKS: (*dots, 0 * dots[0]),
        },
        "theory / networks $-$ 1 (%)": {
            **{name: (ts, 100 * (value / V4 - 1)) for name, value in theories.items()},
            NETWORKS: (ts, 0 * ts, 100 * stderr / V4),
        },
    }
    return Drawing(f"What a quadrature rule does to $V_4$\n{study.setting.symbols}", panels)
