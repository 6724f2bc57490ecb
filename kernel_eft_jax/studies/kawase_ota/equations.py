r"""The published equations on the sampled networks of the main job: the residual of V4, and the source of K1 (Figure
4).

The residual is the sum of two parts: what the transport term $\chi V_4 + V_4 \chi^T$ leaves out, and what the source
$\Sigma(K_0, Q(K_0))$ leaves out. Each is measured at one depth without a derivative (`covariance_residual`), once with
the published 32-point rule and once with converged expectations.
"""

import itertools
from collections.abc import Mapping

import numpy as np

import kernel_eft_jax as keft

from .gauss_hermite import tanh_squared
from .item import Chapter, Drawing, Item, Row, WithError, entry, first
from .main_job import C_W, MAIN_NETWORKS, MODEL, PUBLISHED, RULE_32, RULE_MODEL, TANH, Study
from .names import G_ONLY, NETWORKS, PUBLISHED_NETWORKS, RULE, SIGMA, TOWER
from .summary import summary_section

RESIDUAL = {float(t): value for t, value in PUBLISHED["V4_equation_residual_0000_n64"].items()}


def equations_item(study: Study) -> Item:
    """The residual of the V4 equation, the source of K1, the numerical summary."""
    found = {
        name: keft.covariance_residual(study.sampled, model, np.asarray(study.theories[name].K0))
        for name, model in ((RULE, RULE_MODEL), (G_ONLY, MODEL))
    }
    tower = keft.covariance_residual(study.theories[TOWER], MODEL).value
    sections = [_residual(study, found), _parts(found, tower), _source(study), summary_section(study)]
    figures = {
        "residual-of-V4": _residual_figure(study, found, tower),
        "figure-4-source": _source_figure(study),
        "kurtosis": _kurtosis_figure(study),
    }
    return Item(sections, figures, {})


def residual_noise(study: Study) -> Mapping[float, float]:
    r"""Standard errors of the published residuals, by depth time.

    A difference of V4 between neighbouring layers has at least the noise
    $\sqrt{4 V_4 \Sigma / (\mathrm{networks}\, \epsilon^2)}$. The size of the errors is taken from the differences of
    published residuals that are 0.05 apart in t.
    """
    Sigma = 4 * first(study.sampled.G) * C_W * first(study.sampled.S)
    shape = np.sqrt(4 * first(study.sampled.V4) * Sigma / (MAIN_NETWORKS * study.setting.eps**2))
    noise = {t: float(shape[study.place(t)]) for t in RESIDUAL}
    ts = sorted(RESIDUAL)
    neighbours = [(t, u) for t, u in itertools.pairwise(ts) if u - t < 0.06]
    size = np.mean([(RESIDUAL[u] - RESIDUAL[t]) ** 2 / (noise[t] ** 2 + noise[u] ** 2) for t, u in neighbours])
    return {t: float(error * np.sqrt(size)) for t, error in noise.items()}


def _residual(study, found):
    noise = residual_noise(study)
    rows = []
    for t, published in RESIDUAL.items():
        here, converged = (
            entry(found[name].value.total, found[name].stderr.total, study.place(t)) for name in (RULE, G_ONLY)
        )
        rows.append(Row(f"residual[00,00] at t = {t:g}", WithError(published, noise[t]), here, converged))
    end, exact = (float(first(found[name].value.total)[-1]) for name in (RULE, G_ONLY))
    why = (
        "The paper gives no errors of the residual. The errors here have the size of the scatter between published "
        "neighbours, 0.05 apart in t. With converged expectations the residual at "
        f"t = {study.sampled.ts[-1]:g} is {exact:.2f} instead of {end:.2f}. What is left is the closure's own error."
    )
    return Chapter("Residual of the V4 equation", why, rows)


def _parts(found, tower):
    value, stderr = found[G_ONLY].value, found[G_ONLY].stderr
    rows = [
        Row(
            f"{part}[00,00] at t = 2",
            entry(getattr(tower, part)),
            entry(getattr(value, part), getattr(stderr, part)),
            reason=reason,
        )
        for part, reason in (("transport", "eps^2"), ("source", "order 1/n"))
    ]
    transport, total = (float(first(getattr(value, part))[-1]) for part in ("transport", "total"))
    why = (
        "At order 1/n the transport part is that of HermiteTower, and the source part is zero. At t = 2 transport is "
        f"{100 * transport / total:.0f} % of the residual: this published statement stands. The published size does "
        f"not: the transport part is {transport:.2f}, and {first(found[RULE].value.transport)[-1]:.2f} by the rule, "
        "beside a rate of V4 of about 29."
    )
    return Chapter("Residual of the V4 equation, its parts, converged", why, rows, "order 1/n")


def _source(study):
    published, K1 = PUBLISHED["U1_00_t0"], PUBLISHED["K1_00_T2_n64"]
    exact = keft.mean_source(study.sampled, MODEL).value
    driven = keft.driven_K1(study.sampled, MODEL)
    driven = entry(driven.value, driven.stderr)
    bias = float(study.quadrature_bias()[-1, 0, 0])
    closure = {
        name: entry(keft.mean_source(study.theories[name], model).value.closure, at=0)
        for name, model in ((RULE, RULE_MODEL), (G_ONLY, MODEL))
    }
    (right,), (wrong,) = (tanh_squared(s, study.setting.K0[:1, 0])[0] for s in (TANH, RULE_32))
    measured = entry(exact.exact, at=0)
    noise = float(np.sqrt(study.setting.width * first(study.sampled.V_SS)[0] / MAIN_NETWORKS))
    by_rule = WithError(measured.value + study.setting.width * (right - wrong))
    rows = [
        Row("U1[00] at t = 0, measured", WithError(published["exact_measured"], noise), by_rule, measured),
        Row("U1[00] at t = 0 by the EFT", WithError(published["EFT_model"]), closure[RULE], closure[G_ONLY]),
        Row(
            "K1[00] at t = 2 from the measured source",
            WithError(K1["exact_source"], K1["standard_error"]),
            driven._replace(value=driven.value + bias),
            driven,
        ),
    ]
    why = (
        "At depth zero the neurons are independent. So U1 = n (E[S] - E_K0[ss]) is exactly zero, and control variates "
        "sample it without noise. The value that was published as measured is n times the error of the rule for "
        "E[tanh^2]. At depth zero the EFT has 1/2 Hess : Wishart / C_W, since it counts the sampling noise of G. At "
        f"t = 2 the source is {first(exact.exact)[-1]:.3f}. The EFT's model of the source, fed with the sampled V4 and "
        f"K1, is {first(exact.closure)[-1]:.3f}."
    )
    return Chapter("What drives K1", why, rows)


def _residual_figure(study, found, tower):
    ts, noise = study.sampled.ts, residual_noise(study)
    panels = {}
    for part, heading in (("transport", "transport"), ("source", "source"), ("total", "all")):
        lines: dict[str, tuple] = {TOWER: (ts, first(getattr(tower, part)))}
        for name in (RULE, G_ONLY):
            value, stderr = (first(getattr(x, part)) for x in (found[name].value, found[name].stderr))
            lines[f"{NETWORKS}, {name.partition(', ')[2]}"] = (ts, value, stderr)
        panels[heading] = lines
    panels["all"][PUBLISHED_NETWORKS] = tuple(
        np.array(x) for x in (list(RESIDUAL), list(RESIDUAL.values()), list(noise.values()))
    )
    title = f"Residual of the published equation for $V_{{4;00,00}}$\n{study.setting.symbols}"
    return Drawing(title, panels, ylabel=r"$dV_4/dt$ less the equation")


def _source_figure(study):
    """U1 of the networks and the EFT's model of it, with the mismatch at depth zero."""
    ts, theories = study.sampled.ts, study.theories
    source = keft.mean_source(study.sampled, MODEL)
    sampled, stderr = source.value, source.stderr
    eft = keft.mean_source(theories[G_ONLY], MODEL).value
    eft_32 = keft.mean_source(theories[RULE], RULE_MODEL).value
    fed = "GOnly formula, $V_4$ and $K_1$ of networks"
    panels = {}
    for a, b in ((0, 0), (0, 1)):
        jump = eft.closure[0, a, b]
        panels[f"$U_{{1;{a}{b}}}$"] = {
            NETWORKS: (ts, sampled.exact[:, a, b], stderr.exact[:, a, b]),
            TOWER: (ts, np.asarray(theories[TOWER].U1)[:, a, b]),
            G_ONLY: (ts, eft.closure[:, a, b]),
            RULE: (ts, eft_32.closure[:, a, b]),
            fed: (ts, sampled.closure[:, a, b]),
            "mismatch at $t = 0$": (np.zeros(2), np.array([0, jump])),
        }
    title = f"What drives $K_1$: $U_1 = n\\,(E[S] - E_{{K_0}}[\\sigma\\sigma])$\n{study.setting.symbols}"
    return Drawing(title, panels)


def _kurtosis_figure(study):
    measured = keft.kurtosis(study.sampled)
    lines = {NETWORKS: (measured.value[:, 0], measured.stderr[:, 0])}
    lines |= {name: (keft.kurtosis(study.theories[name]).value[:, 0],) for name in (TOWER, G_ONLY, SIGMA)}
    title = f"Excess kurtosis of one neuron, times $n$\n{study.setting.symbols}"
    return Drawing(title, {r"$n\,\kappa_4 / K_0^2$": {k: (study.sampled.ts, *line) for k, line in lines.items()}})
