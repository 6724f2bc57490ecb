"""The published sweeps: width at fixed depth, depth at fixed width, and the step size; V4 of one input.

V4 of an input does not depend on which others are there, so that one input is sampled instead of four.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from ..activations import Tanh
from ..diagnostics import covariance_residual
from ..gauss_hermite import GaussHermite
from ..model import Model
from .main_job import C_W, G_ONLY, QUADRATURE, RULE, THEORIES, TOWER, Setting, Study, main_job
from .published import PUBLISHED, Item, Row, Section, V4_error

K0 = np.array([[2.0]])
WIDTHS = (64, 128, 256)
STEPS = {"0.10": (0.10, 200), "0.07": (0.07, 408), "0.05": (0.05, 800)}
NETWORKS = PUBLISHED["settings"]["sweeps"]["networks"]
SWEPT = {name: THEORIES[name]._replace(inputs=1) for name in (G_ONLY, RULE, TOWER)}


def sweep(networks: int, key: PRNGKeyArray, *, progress: bool = True) -> dict[tuple[int, str], Study]:
    """Ensembles of one input for every published width and step, by width and step."""
    cases = [(n, "0.05") for n in WIDTHS] + [(WIDTHS[-1], step) for step in STEPS if step != "0.05"]
    keys = jax.random.split(key, len(cases))
    studies = {}
    for (n, step), own in zip(cases, keys, strict=True):
        eps, depth = STEPS[step]
        studies[n, step] = main_job(networks, own, Setting(K0, n, depth, eps), SWEPT, progress=progress)
    return studies


def sweep_item(studies: Mapping[tuple[int, str], Study]) -> Item:
    """The tables of the sweeps, and one figure of the error of V4 over depth for each width and step."""
    wide = studies[WIDTHS[-1], "0.05"]
    sections = [
        *(_error_section(studies, name) for name in (RULE, G_ONLY)),
        _width_section(studies),
        _source_section(wide),
    ]
    results = {
        f"sweep n={n} eps={step}": (s.sampled, {"model": Model(Tanh(), C_W), "eps": STEPS[step][0]})
        for (n, step), s in studies.items()
    }
    return Item(sections, {"sweeps": _figure(studies)}, results)


def relative_error(study: Study, name: str) -> np.ndarray:
    """V4 of a theory over that of the sampled networks, less one, at each depth."""
    V4 = study.V4()[0][:, 0, 0, 0, 0]
    return np.asarray(study.theories[name].V4)[:, 0, 0, 0, 0] / V4 - 1


def _stderr(study: Study) -> np.ndarray:
    V4, stderr = (x[:, 0, 0, 0, 0] for x in study.V4())
    return stderr / V4


def _error_section(studies, name):
    reason = "" if name == RULE else QUADRATURE

    def row(quantity, published, study, i):
        noise = V4_error(1.0, NETWORKS)
        return Row(quantity, published, noise, float(relative_error(study, name)[i]), float(_stderr(study)[i]), reason)

    wide = studies[WIDTHS[-1], "0.05"]
    rows = [
        row(f"n = {p['n']}, t = 2", p["relative_error"], studies[p["n"], "0.05"], -1)
        for p in PUBLISHED["V4_0000_T2_by_width"]
    ]
    rows += [
        row(f"eps = {step}, n = 256, t = 2", published, studies[WIDTHS[-1], step], -1)
        for step, published in PUBLISHED["V4_relative_error_by_eps_n256_T2"].items()
    ]
    rows += [
        row(f"T = {float(T):g}, n = 256, eps = 0.05", published, wide, wide.place(float(T)))
        for T, published in PUBLISHED["V4_relative_error_by_T_n256"].items()
    ]
    if name == RULE:
        return Section(
            "Sweeps of width, step and depth: G-only V4 / sampled V4 - 1, theory by the published rule",
            f"Published errors taken as sqrt(2 / networks), {NETWORKS:,} networks. The error does not fall with the width nor with the step, and "
            "grows with depth: so it was read as that of the closure. It is that of the rule, which is the same at every width and step.",
            rows,
        )
    last = relative_error(wide, G_ONLY)[-1]
    return Section(
        "Sweeps of width, step and depth: G-only V4 / sampled V4 - 1, expectations converged",
        f"The same networks beside the converged theory: {100 * last:.1f} % at n = 256 and t = 2 instead of -11.5 %.",
        rows,
    )


def _width_section(studies):
    rows = []
    for p in PUBLISHED["V4_0000_T2_by_width"]:
        V4, stderr = (float(x[-1, 0, 0, 0, 0]) for x in studies[p["n"], "0.05"].V4())
        rows.append(
            Row(f"V4[00,00] at t = 2, n = {p['n']}", p["sampled"], V4_error(p["sampled"], NETWORKS), V4, stderr)
        )
    limit = float(studies[WIDTHS[-1], "0.05"].theories[TOWER].V4[-1, 0, 0, 0, 0])
    why = f"At infinite width these layers have {limit:.3f} (Hermite tower): what is left falls like 1/n."
    return Section("Sampled V4 does not depend on the width, up to 1/n", why, rows)


def _source_section(study):
    """Sigma of the sampled networks beside that of the closure, n = 256."""
    rows = []
    for title, name, activation in (("published rule", RULE, GaussHermite(Tanh())), ("converged", G_ONLY, Tanh())):
        model, solution = Model(activation, C_W), study.theories[name]
        residual, stderr = covariance_residual(study.sampled, model, np.asarray(solution.K0))
        for p in PUBLISHED["Sigma_0000_n256"]:
            i = study.place(p["t"])
            k = float(solution.K0[i, 0, 0])
            closure = 4 * k * float(model.q(solution.packed.K0[i])[0])
            if name == RULE:
                value, error = closure + float(residual.source[i].ravel()[0]), float(stderr.source[i].ravel()[0])
                noise = float(2 * p["microscopic"] / np.sqrt(NETWORKS * study.setting.width))
                rows.append(Row(f"Sigma[00,00] of networks at t = {p['t']:g}", p["microscopic"], noise, value, error))
            rows.append(
                Row(
                    f"Sigma[00,00] of the closure at t = {p['t']:g}, {title}",
                    p["closure"],
                    None,
                    closure,
                    None,
                    QUADRATURE,
                )
            )
    why = "The source closes well: what networks add to Sigma(K0, Q(K0)) is of order 1/n, here 0.1 per cent."
    return Section("The source of V4, n = 256", why, rows)


def _figure(studies):
    from ..diagnostic_plots import Line, plot_panels

    def panel(name):
        lines = {}
        for (n, step), study in studies.items():
            value, stderr = 100 * relative_error(study, name), 100 * _stderr(study)
            lines[rf"$n = {n}$, $\epsilon = {step}$"] = Line(np.asarray(study.sampled.ts), value, stderr)
        return lines

    return plot_panels(
        {"G-only V4 by the 32-point rule": panel(RULE), "G-only V4, expectations converged": panel(G_ONLY)},
        title="Error of the G-only V4 against sampled networks, for every width and step",
        ylabel="error of theory (%)",
    )
