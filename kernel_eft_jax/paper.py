r"""The published study (Kawase and Ota 2026, arXiv 2604.15742) as data, and its main job: sample, solve, compare.

The published numerics take Gaussian expectations by a 32-point Gauss-Hermite rule, which is not converged for tanh:
`GaussHermite` repeats them. With it `solve` gives the published theory back, digit by digit; with converged expectations it
gives another one, and `table` says for each number how far that explains the difference.
"""

import json
import re
import textwrap
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from .activations import Activation, Tanh
from .closures import Closure, GOnly, HermiteTower, Moments, SigmaKernel
from .ensemble import Estimate, estimate
from .gauss_hermite import GaussHermite
from .model import Model
from .pairs import sigma_product
from .storage import save
from .trajectory import Solution, solve

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED = json.loads(files("kernel_eft_jax").joinpath("published.json").read_text())
K0 = 0.6 + 1.4 * np.eye(4)
C_W, WIDTH, DEPTH, EPS = 2.0, 64, 800, 0.05


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
    """The main job: sampled networks, and each of `THEORIES` at the same layers."""

    sampled: Estimate
    theories: Mapping[str, Solution]

    def V4(self) -> tuple[Float[np.ndarray, "T 2 2 2 2"], Float[np.ndarray, "T 2 2 2 2"]]:
        """V4 of the sampled networks between the first two inputs, and its standard error.

        By control variates: its value at infinite width, which the tower knows, and the sampled excess over that.
        """
        excess, stderr = self.sampled.V4_excess, self.sampled.stderr.V4_excess
        assert excess is not None
        assert stderr is not None
        first = np.s_[:, :2, :2, :2, :2]
        return np.asarray(self.theories[TOWER].V4) + excess[first], stderr[first]

    def place(self, t: float) -> int:
        """The saved depth closest to t."""
        return int(np.abs(self.sampled.ts - t).argmin())


def main_job(networks: int, key: PRNGKeyArray, *, progress: bool = True) -> Study:
    """Sample the published ensemble, n = 64 and 800 layers at eps = 0.05, and solve each of `THEORIES` layer by layer."""
    sampled = estimate(Model(Tanh(), C_W), K0, WIDTH, DEPTH, EPS, networks, key, progress=progress)
    theories = {
        name: solve(Model(activation, C_W), K0[:inputs, :inputs], sampled.ts, closure=closure, eps=EPS)
        for name, (closure, activation, inputs) in THEORIES.items()
    }
    return Study(sampled, theories)


class Row(NamedTuple):
    """A published number and ours, each with its standard error or None where nothing is random."""

    quantity: str
    published: float
    published_error: float | None
    here: float
    here_error: float | None

    @property
    def difference(self) -> str:
        """Ours less theirs, in standard errors where there are any."""
        error = np.hypot(self.published_error or 0.0, self.here_error or 0.0)
        gap = self.here - self.published
        return f"{gap / error:+.1f} s.e." if error else f"{gap:+.2g}"


class Section(NamedTuple):
    """Rows that belong together, and why theirs and ours agree or differ."""

    title: str
    why: str
    rows: list[Row]


def table(study: Study) -> list[Section]:
    """The published values beside ours."""
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
    V4 = [
        Row(f"V4[00,00] at t = {p['t']}", p["theory"], None, float(solution.V4[study.place(p["t"]), 0, 0, 0, 0]), None)
        for p in PUBLISHED["V4_0000_n64"]
    ]
    first = Row("K0[00] at t = 2", published["K0_00"], None, float(solution.K0[-1, 0, 0]), None)
    return [first, *V4, Row("K1_EFT[00] at t = 2", published["K1_EFT_00"], None, float(solution.K1[-1, 0, 0]), None)]


def quadrature_bias(study: Study) -> float:
    """n times the error of the published K0[00] at t = 2, which the published K1_mic = n (E[G] - K0) contains."""
    return WIDTH * float(study.theories[G_ONLY].K0[-1, 0, 0] - study.theories[RULE].K0[-1, 0, 0])


def _V4_error(value, networks):
    """Standard error of V4 of nearly Gaussian kernels; the published ones are not given."""
    return value * (2 / networks) ** 0.5


def _sampled_section(study):
    sampled, published, bias = study.sampled, PUBLISHED["K1_00_T2_n64"], quadrature_bias(study)
    networks = PUBLISHED["settings"]["main"]["networks"]
    V4, V4_error = (x[:, 0, 0, 0, 0] for x in study.V4())
    K1, error = float(sampled.K1[-1, 0, 0]), float(sampled.stderr.K1[-1, 0, 0])
    mic, mic_error = published["microscopic"], published["standard_error"]
    rows = [
        Row(
            f"V4[00,00] at t = {p['t']}",
            p["sampled"],
            _V4_error(p["sampled"], networks),
            float(V4[i]),
            float(V4_error[i]),
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
        f"K1_mic = n (E[G] - K0), and the published K0[00] is too large by {-bias / WIDTH:.5f}: {bias:+.3f} of the published K1_mic "
        "is that error, times n. Errors of the published V4 are not given; sqrt(2 / networks) V4 is used."
    )
    return Section(f"Sampled networks, n = {WIDTH}: {networks:,} published, {sampled.networks:,} here", why, rows)


def _verdict_section(study):
    V4, K1 = float(study.V4()[0][-1, 0, 0, 0, 0]), float(study.sampled.K1[-1, 0, 0])
    theory_V4, theory_K1 = (
        {name: float(getattr(s, field)[-1].ravel()[0]) for name, s in study.theories.items()} for field in ("V4", "K1")
    )
    narrow, wide = (PUBLISHED["V4_0000_T2_by_width"][i] for i in (0, -1))
    wide_error = _V4_error(wide["sampled"], PUBLISHED["settings"]["sweeps"]["networks"])
    mic = PUBLISHED["K1_00_T2_n64"]
    K1_mic = mic["microscopic"] - quadrature_bias(study)
    rows = [
        Row("G-only V4 / sampled V4 - 1", narrow["relative_error"], None, theory_V4[G_ONLY] / V4 - 1, None),
        Row("K1_EFT / K1_mic", mic["EFT"] / mic["microscopic"], None, theory_K1[G_ONLY] / K1, None),
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


def markdown(sections: list[Section]) -> str:
    """The table as text: aligned, and valid Markdown."""
    head = ("quantity", "published", "here", "here - published")
    lines = [
        "## arXiv 2604.15742: published and here",
        "",
        f"tanh, C_W = {C_W}, C_b = 0, K0 = 2 / 0.6, eps = {EPS}, {DEPTH} layers",
        "",
    ]
    for title, why, rows in sections:
        numbers = ((_number(r.published, r.published_error), _number(r.here, r.here_error)) for r in rows)
        cells = [head, *((r.quantity, *two, r.difference) for r, two in zip(rows, numbers, strict=True))]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        first, *rest = (
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
            for row in cells
        )
        rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
        lines += [f"### {title}", "", first, rule, *rest, "", *textwrap.wrap(why, 110), ""]
    return "\n".join(lines)


def _number(value, error):
    return f"{value:.5g} ± {error:.2g}" if error else f"{value:.6g}"


def figures(study: Study) -> dict[str, "Figure"]:
    """Figures 1 (mean kernel), 3 (its correction) and 4 (its covariance) of the paper, by file name."""
    from .plots import Curve, Points, trajectories

    sampled, theories = study.sampled, study.theories
    label = f"sampled: {sampled.networks:,} networks, n = {WIDTH}"
    setting = rf"(tanh, $C_W = 2$, $n = {WIDTH}$, $\epsilon = {EPS}$, {DEPTH} layers)"
    mean = Points(sampled.ts, sampled.K0 + sampled.K1 / WIDTH, sampled.stderr.K1 / WIDTH)
    means = {f"$K_0$, {name}": Curve(np.asarray(theories[name].K0)) for name in (G_ONLY, RULE)}
    means |= {f"$K_0 + K_1 / n$, {TOWER}": Curve(np.asarray(theories[TOWER].K0 + theories[TOWER].K1 / WIDTH))}
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


def write(study: Study, out: Path) -> list[Path]:
    """Data, table and figures into a directory; the files written."""
    from . import plots

    out.mkdir(parents=True, exist_ok=True)
    settings = {"model": Model(Tanh(), C_W), "eps": EPS}
    paths = [save(study.sampled, out / "sampled.nc", **settings, depth=DEPTH)]
    for name, solution in study.theories.items():
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        settings |= {"model": Model(THEORIES[name].activation, C_W), "closure": THEORIES[name].closure}
        paths.append(save(solution, out / f"theory-{slug}.nc", **settings))
    sections = table(study)
    as_data = [s._asdict() | {"rows": [r._asdict() | {"difference": r.difference} for r in s.rows]} for s in sections]
    for name, text in (("table.md", markdown(sections)), ("table.json", json.dumps(as_data, indent=1) + "\n")):
        paths.append(out / name)
        paths[-1].write_text(text, encoding="utf-8")
    for name, figure in figures(study).items():
        paths += plots.save(figure, out / name)
    return paths
