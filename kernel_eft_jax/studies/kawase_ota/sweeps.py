"""The published sweeps: width at fixed depth, depth at fixed width, and the step size (Figure 2); the source of V4
(Table 3).

V4 of an input does not depend on the other inputs, so that one input is sampled instead of four.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

import kernel_eft_jax as keft

from .item import Chapter, Drawing, Item, Row, WithError, entry, first
from .main_job import MAIN, MODEL, PUBLISHED, RULE_MODEL, SWEEP_NETWORKS, THEORIES, Setting, Study, V4_error, main_job
from .names import G_ONLY, RULE, TOWER

WIDTHS = (64, 128, 256)
WIDE, FINE = 256, "0.05"
STEPS = {"0.10": (0.10, 200), "0.07": (0.07, 408), FINE: (0.05, 800)}
Sweep = Mapping[tuple[int, str], Study]


def sweep(networks: int, key: PRNGKeyArray, *, progress: bool = True) -> Sweep:
    """Ensembles of one input for every published width and step, by width and step."""
    cases = [(n, FINE) for n in WIDTHS] + [(WIDE, step) for step in STEPS if step != FINE]
    theories = {name: THEORIES[name]._replace(inputs=1) for name in (G_ONLY, RULE, TOWER)}
    studies = {}
    for (n, step), own in zip(cases, jax.random.split(key, len(cases)), strict=True):
        eps, depth = STEPS[step]
        setting = Setting(MAIN.K0[:1, :1], n, depth, eps)
        studies[n, step] = main_job(networks, own, setting, theories, progress=progress)
    return studies


def sweep_item(studies: Sweep) -> Item:
    """The tables of the sweeps, Figure 2, and the errors for each width and step."""
    sections = [_error_rows(studies), _width_rows(studies), _table_3(studies[WIDE, FINE])]
    figures = {"figure-2-steps": _figure_2(studies), "errors-by-width-and-step": _error_figure(studies)}
    results = {f"sweep n={n} eps={step}": s.sampled for (n, step), s in studies.items()}
    return Item(sections, figures, results)


def V4_relative_error(study: Study, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The ratio of V4 of a theory to that of the sampled networks, minus one, at each depth, and its standard error."""
    V4, stderr = (first(x) for x in study.V4())
    return first(study.theories[name].V4) / V4 - 1, stderr / V4


def _error_rows(studies):
    def row(quantity, published, study, i=-1):
        theirs = WithError(published, V4_error(1.0, SWEEP_NETWORKS))
        here, converged = (entry(*V4_relative_error(study, name), at=i) for name in (RULE, G_ONLY))
        return Row(quantity, theirs, here, converged)

    wide = studies[WIDE, FINE]
    rows = [
        row(f"n = {p['n']}, t = 2", p["relative_error"], studies[p["n"], FINE])
        for p in PUBLISHED["V4_0000_T2_by_width"]
    ]
    rows += [
        row(f"eps = {step}, n = {WIDE}, t = 2", published, studies[WIDE, step])
        for step, published in PUBLISHED["V4_relative_error_by_eps_n256_T2"].items()
        if step != FINE
    ]
    rows += [
        row(f"T = {float(T):g}, n = {WIDE}, eps = {FINE}", published, wide, wide.place(float(T)))
        for T, published in PUBLISHED["V4_relative_error_by_T_n256"].items()
        if float(T) < 2
    ]
    why = (
        f"The errors of the published rows are taken as sqrt(2 / networks) for {SWEEP_NETWORKS:,} networks. The "
        "difference of V4 from the networks falls neither with the width nor with the step, and grows with depth. So "
        "the paper read it as the error of the closure. It is the error of the rule, which is the same at every width "
        "and step. By the converged theory the same networks leave a difference of "
        f"{100 * V4_relative_error(wide, G_ONLY)[0][-1]:.1f} % at n = {WIDE} and t = 2."
    )
    return Chapter("Sweeps of width, step and depth: V4 of GOnly / sampled V4 - 1", why, rows)


def _width_rows(studies):
    rows = [
        Row(
            f"V4[00,00] at t = 2, n = {p['n']}",
            WithError(p["sampled"], V4_error(p["sampled"], SWEEP_NETWORKS)),
            entry(*studies[p["n"], FINE].V4()),
        )
        for p in PUBLISHED["V4_0000_T2_by_width"]
    ]
    limit = entry(studies[WIDE, FINE].theories[TOWER].V4).value
    why = f"At infinite width these layers have {limit:.3f} (HermiteTower): what is left falls like 1/n."
    return Chapter("Sampled V4 does not depend on the width, up to 1/n", why, rows)


def _table_3(study):
    """The table of Sigma, of the sampled networks and of the closure."""
    closures, networks = {}, None
    for name, model in ((RULE, RULE_MODEL), (G_ONLY, MODEL)):
        K0 = np.asarray(study.theories[name].K0)
        closures[name] = 4 * first(K0) * first(jax.vmap(model.Q)(jnp.asarray(K0)))
        residual = keft.covariance_residual(study.sampled, model, K0)
        value, stderr = residual.value, residual.stderr
        networks = closures[name] + first(value.source), first(stderr.source)
    rows = []
    for p in PUBLISHED["table_3_Sigma_0000_n256"]:
        i = study.place(p["t"])
        noise = 2 * p["microscopic"] / np.sqrt(SWEEP_NETWORKS * study.setting.width)
        rows.append(
            Row(
                f"Sigma[00,00] of networks at t = {p['t']:g}",
                WithError(p["microscopic"], noise),
                entry(*networks, at=i),
            )
        )
    for p in PUBLISHED["table_3_Sigma_0000_n256"]:
        i = study.place(p["t"])
        here, converged = (entry(closures[name], at=i) for name in (RULE, G_ONLY))
        rows.append(Row(f"Sigma[00,00] of the closure at t = {p['t']:g}", WithError(p["closure"]), here, converged))
    share = 100 * (networks[0][-1] / closures[G_ONLY][-1] - 1)
    why = "The source closes well: what networks add to Sigma(K0, Q(K0)) is of order 1/n, "
    why += f"here {share:.2f} per cent at t = 2."
    return Chapter(f"Table 3, the source of V4, n = {WIDE}", why, rows)


def _figure_2(studies):
    """V4 for each step, and the error of the published theory."""
    values, errors = {}, {}
    for step in STEPS:
        study, label = studies[WIDE, step], rf"networks, $\epsilon = {step}$"
        ts, (error, stderr) = study.sampled.ts, V4_relative_error(study, RULE)
        values[label] = (ts, *(first(x) for x in study.V4()))
        errors[label] = (ts, 100 * error, 100 * stderr)
    fine = studies[WIDE, FINE]
    values |= {name: (fine.sampled.ts, first(fine.theories[name].V4)) for name in (RULE, G_ONLY)}
    headings = "(a)  $V_{4;00,00}$", "(b)  32-point rule / networks $-$ 1 (%)"
    title = f"tanh, $C_W = 2$, $K_0 = 2$, $n = {WIDE}$, {fine.sampled.networks:,} networks for each step"
    return Drawing(title, dict(zip(headings, (values, errors), strict=True)))


def _error_figure(studies):
    panels = {}
    for name in (RULE, G_ONLY):
        panels[name] = {
            rf"$n = {n}$, $\epsilon = {step}$": (
                study.sampled.ts,
                *(100 * x for x in V4_relative_error(study, name)),
            )
            for (n, step), study in studies.items()
        }
    return Drawing("Error of $V_4$ of GOnly against networks of every width and step", panels, ylabel="per cent")
