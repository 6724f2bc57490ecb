r"""The main job of the published study: sample, solve, compare.

The published numerics take Gaussian expectations by a 32-point Gauss-Hermite rule, which is not converged for tanh:
`GaussHermite` repeats them. With it `solve` gives the published theory back, digit by digit; with converged expectations it
gives another one, and the table says for each number how far that explains the difference.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from ..activations import Activation, Tanh
from ..closures import Closure, GOnly, HermiteTower, Moments, SigmaKernel
from ..ensemble import Estimate, estimate
from ..gauss_hermite import GaussHermite
from ..model import Model
from ..pairs import sigma_product
from ..trajectory import Solution, solve
from .published import PUBLISHED, Item, Row, Section, V4_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

C_W = 2.0
TANH = Tanh()
QUADRATURE = "32-point rule"  # why the published theory differs from a converged one


class Setting(NamedTuple):
    """Input kernel and network."""

    K0: Float[np.ndarray, "N N"]
    width: int
    depth: int
    eps: float

    def __str__(self) -> str:
        K0 = f"{self.K0[0, 0]:g}" + (f" / {self.K0[0, 1]:g}" if len(self.K0) > 1 else "")
        return f"tanh, C_W = {C_W:g}, C_b = 0, K0 = {K0}, n = {self.width}, eps = {self.eps:g}, {self.depth} layers"


MAIN = Setting(0.6 + 1.4 * np.eye(4), 64, 800, 0.05)


class SourceOnly(GOnly):
    """The paper's V4 without transport: chi left out, so that only the sampling noise of each layer adds up."""

    def drift(self, model: Model, state: Moments) -> Moments:
        q = model.q(state.K0)
        return Moments(q, sigma_product(state.K0, q), jnp.zeros_like(state.K1))


class Theory(NamedTuple):
    """A closure at the published settings, for the first few inputs: V4_ab,cd does not depend on inputs other than its own."""

    closure: Closure
    activation: Activation
    inputs: int


G_ONLY, RULE, SOURCE = "G-only", "G-only, 32-point rule", "G-only, sources only"
SIGMA, TOWER = "sigma-kernel", "Hermite tower (exact at order 1/n)"
THEORIES = {
    G_ONLY: Theory(GOnly(), Tanh(), 4),
    RULE: Theory(GOnly(), GaussHermite(Tanh()), 4),
    TOWER: Theory(HermiteTower(40), Tanh(), 2),
    SIGMA: Theory(SigmaKernel(), Tanh(), 2),
    SOURCE: Theory(SourceOnly(), Tanh(), 4),
}


class Study(NamedTuple):
    """Sampled networks of one setting, and theories at the same layers."""

    setting: Setting
    sampled: Estimate
    theories: Mapping[str, Solution]

    def V4(self) -> tuple[Float[np.ndarray, "T 2 2 2 2"], Float[np.ndarray, "T 2 2 2 2"]]:
        """V4 of the sampled networks between the inputs that the tower was solved for, and its standard error.

        By control variates: its value at infinite width, which the tower knows, and the sampled excess over that.
        """
        excess, stderr = self.sampled.V4_excess, self.sampled.stderr.V4_excess
        assert excess is not None
        assert stderr is not None
        exact = np.asarray(self.theories[TOWER].V4)
        first = (slice(None), *(slice(exact.shape[-1]),) * 4)
        return exact + excess[first], stderr[first]

    def place(self, t: float) -> int:
        """The saved depth closest to t."""
        return int(np.abs(self.sampled.ts - t).argmin())

    def quadrature_bias(self) -> Float[np.ndarray, "T N N"]:
        """n times the error of the published K0, which the published K1_mic = n (E[G] - K0) contains."""
        return self.setting.width * np.asarray(self.theories[G_ONLY].K0 - self.theories[RULE].K0)


def main_job(
    networks: int,
    key: PRNGKeyArray,
    setting: Setting = MAIN,
    theories: Mapping[str, Theory] = THEORIES,
    *,
    activation: Activation = TANH,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
) -> Study:
    """Sample networks, by default of the published setting, n = 64 and 800 layers at eps = 0.05, and solve theories layer by layer."""
    K0, width, depth, eps = setting
    sizes = {"width": width, "depth": depth, "eps": eps, "networks": networks}
    sampled = estimate(Model(activation, C_W), K0, **sizes, key=key, checkpoint=checkpoint, progress=progress)
    solutions = {
        name: solve(Model(theory.activation, C_W), K0[:inputs, :inputs], sampled.ts, closure=theory.closure, eps=eps)
        for name, theory in theories.items()
        for inputs in [theory.inputs]
    }
    return Study(setting, sampled, solutions)


def main_item(study: Study) -> Item:
    """The main job as a part of the study: K0, V4 and K1, with Figures 1, 3 and 4 of the paper."""
    settings = {"eps": study.setting.eps, "depth": study.setting.depth}
    results: dict[str, tuple[Estimate | Solution, dict]] = {
        "sampled": (study.sampled, {"model": Model(Tanh(), C_W), **settings})
    }
    for name, solution in study.theories.items():
        closure, activation, _ = THEORIES[name]
        results[f"theory-{name}"] = (solution, {"model": Model(activation, C_W), "closure": closure, **settings})
    return Item(table(study), figures(study), results)


def table(study: Study) -> list[Section]:
    """The published values of the main job beside ours."""
    k = jnp.array([4.0])
    rule, exact = (eqx.filter_jit(s.expansion)(k) for s in (GaussHermite(Tanh()), Tanh()))
    return [
        Section(
            "G-only theory by the published 32-point rule, in this pipeline",
            "Same equations, same layers, same rule: the published numbers come back.",
            _theory_rows(study, RULE),
        ),
        Section(
            "G-only theory, expectations converged",
            "A 32-point Gauss-Hermite rule is not converged for tanh. At K = 4 it gives E[tanh^2] too large by "
            f"{float(rule.value[0] - exact.value[0]):.1e}, and E[(tanh^2)''], which is chi, as {2 * float(rule.slope.sum()):.4f} "
            f"where it is {2 * float(exact.slope.sum()):.4f}. That is the whole difference.",
            _theory_rows(study, G_ONLY),
        ),
        _sampled_section(study),
        _verdict_section(study),
    ]


def _theory_rows(study, name):
    solution, published = study.theories[name], PUBLISHED["theory_at_T2"]
    values = [("K0[00] at t = 2", published["K0_00"], solution.K0[-1, 0, 0])]
    for p in PUBLISHED["V4_0000_n64"]:
        values.append((f"V4[00,00] at t = {p['t']}", p["theory"], solution.V4[study.place(p["t"]), 0, 0, 0, 0]))
    values.append(("K1_EFT[00] at t = 2", published["K1_EFT_00"], solution.K1[-1, 0, 0]))
    return [Row(quantity, theirs, None, float(ours), None, QUADRATURE) for quantity, theirs, ours in values]


def _sampled_section(study):
    sampled, published, bias = study.sampled, PUBLISHED["K1_00_T2_n64"], float(study.quadrature_bias()[-1, 0, 0])
    networks = PUBLISHED["settings"]["main"]["networks"]
    V4, stderr = (x[:, 0, 0, 0, 0] for x in study.V4())
    K1, error = float(sampled.K1[-1, 0, 0]), float(sampled.stderr.K1[-1, 0, 0])
    mic, mic_error = published["microscopic"], published["standard_error"]
    rows = [
        Row(
            f"V4[00,00] at t = {p['t']}",
            p["sampled"],
            V4_error(p["sampled"], networks),
            float(V4[i]),
            float(stderr[i]),
        )
        for p in PUBLISHED["V4_0000_n64"]
        for i in [study.place(p["t"])]
    ]
    raw, raw_error = (float(x.V4[-1, 0, 0, 0, 0]) for x in (sampled, sampled.stderr))
    rows += [
        rows[-1]._replace(quantity="V4[00,00] at t = 2, no control variate", here=raw, here_error=raw_error),
        Row("K1_mic[00] at t = 2, with the published K0", mic, mic_error, K1 + bias, error),
        Row("K1_mic[00] at t = 2, with the converged K0", mic - bias, mic_error, K1, error),
    ]
    why = (
        f"K1_mic = n (E[G] - K0), and the published K0[00] is too large by {-bias / study.setting.width:.5f}: {bias:+.3f} of the published K1_mic "
        "is that error, times n. Errors of the published V4 are not given; sqrt(2 / networks) V4 is used."
    )
    return Section(
        f"Sampled networks, n = {study.setting.width}: {networks:,} published, {sampled.networks:,} here", why, rows
    )


def _verdict_section(study):
    V4, K1 = float(study.V4()[0][-1, 0, 0, 0, 0]), float(study.sampled.K1[-1, 0, 0])
    theory_V4, theory_K1 = (
        {name: float(getattr(s, field)[-1].ravel()[0]) for name, s in study.theories.items()} for field in ("V4", "K1")
    )
    narrow, wide = (PUBLISHED["V4_0000_T2_by_width"][i] for i in (0, -1))
    wide_error = V4_error(wide["sampled"], PUBLISHED["settings"]["sweeps"]["networks"])
    mic = PUBLISHED["K1_00_T2_n64"]
    K1_mic = mic["microscopic"] - float(study.quadrature_bias()[-1, 0, 0])
    rows = [
        Row("G-only V4 / sampled V4 - 1", narrow["relative_error"], None, theory_V4[G_ONLY] / V4 - 1, None, QUADRATURE),
        Row("K1_EFT / K1_mic", mic["EFT"] / mic["microscopic"], None, theory_K1[G_ONLY] / K1, None, QUADRATURE),
    ]
    for name in (SIGMA, TOWER):
        short = name.partition(" (")[0]
        rows += [
            Row(f"V4: sampled at n = {wide['n']}; here {short}", wide["sampled"], wide_error, theory_V4[name], None),
            Row(f"K1_mic with the converged K0; here {short}", K1_mic, mic["standard_error"], theory_K1[name], None),
        ]
    off = 100 * (theory_V4[G_ONLY] / theory_V4[TOWER] - 1)
    why = (
        f"With converged expectations the G-only V4 is off by {off:.1f} % at infinite width, and its K1_EFT is "
        f"{theory_K1[G_ONLY] / theory_K1[TOWER]:.1f} times too large. The theories that go beyond it agree with the published networks."
    )
    return Section("What holds, component [00] at t = 2", why, rows)


def figures(study: Study) -> dict[str, "Figure"]:
    """Figures 1 (mean kernel), 3 (its correction) and 4 (its covariance) of the paper, by file name."""
    from ..plots import Curve, Points, trajectories

    (_, width, depth, eps), sampled, theories = study
    label = f"sampled: {sampled.networks:,} networks, n = {width}"
    setting = rf"(tanh, $C_W = 2$, $n = {width}$, $\epsilon = {eps}$, {depth} layers)"
    mean = Points(sampled.ts, sampled.K0 + sampled.K1 / width, sampled.stderr.K1 / width)
    means = {f"$K_0$, {name}": Curve(np.asarray(theories[name].K0)) for name in (G_ONLY, RULE)}
    means |= {f"$K_0 + K_1 / n$, {TOWER}": Curve(np.asarray(theories[TOWER].K0 + theories[TOWER].K1 / width))}
    K1 = {name: Curve(np.asarray(solution.K1)) for name, solution in theories.items() if name != SOURCE}
    V4 = {name: Curve(np.asarray(solution.V4), compare=name != SOURCE) for name, solution in theories.items()}
    one, two = [(0, 0), (0, 1)], [(0, 0, 0, 0), (0, 1, 0, 1)]

    def draw(symbol, points, curves, entries, what, relative):
        return trajectories(symbol, points, curves, entries, title=f"{what} {setting}", label=label, relative=relative)

    return {
        "figure-1-mean-kernel": draw("E[G_{{{}}}]", mean, means, one, "Mean kernel", True),
        "figure-3-mean-correction": draw(
            "K_{{1;{}}}",
            Points(sampled.ts, sampled.K1, sampled.stderr.K1),
            K1,
            one,
            "1/n correction of the mean kernel",
            False,
        ),
        "figure-4-covariance": draw(
            "V_{{4;{}}}", Points(sampled.ts, *study.V4()), V4, two, "Covariance of the kernel, times n", True
        ),
    }
