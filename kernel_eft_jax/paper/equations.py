r"""The published equations on the sampled networks of the main job: the residual of V4, the source of K1, a summary.

The residual is split into what the transport term $\chi V_4 + V_4 \chi^T$ and the source $\Sigma(K_0, Q(K_0))$ leave out, each measured at one
depth without a derivative (`diagnostics.covariance_residual`); once with the published 32-point rule and once converged.
"""

import numpy as np

from ..activations import Tanh
from ..diagnostics import CovarianceResidual, covariance_residual, driven_K1, kurtosis, mean_source
from ..diagnostics.equations import expansions
from ..gauss_hermite import GaussHermite
from ..model import Model
from .main_job import C_W, G_ONLY, QUADRATURE, RULE, SIGMA, SOURCE, TOWER, Study
from .published import PUBLISHED, Item, Row, Section

NETWORKS = PUBLISHED["settings"]["main"]["networks"]


Residuals = dict[str, tuple[CovarianceResidual, CovarianceResidual]]


def residuals(study: Study) -> Residuals:
    """Residual of V4 of the sampled networks and its standard error, by converged expectations and by the published rule."""
    models = {G_ONLY: Model(Tanh(), C_W), RULE: Model(GaussHermite(Tanh()), C_W)}
    return {
        name: covariance_residual(study.sampled, model, np.asarray(study.theories[name].K0))
        for name, model in models.items()
    }


def equations_item(study: Study) -> Item:
    """Figure 2 of the study, the residual of the V4 equation, and the source behind Figure 3."""
    found = residuals(study)
    sections = [
        _residual_section(study, found, RULE),
        _residual_section(study, found, G_ONLY),
        _parts_section(study, found),
    ]
    sections += [_source_section(study), _summary_section(study)]
    return Item(sections, _figures(study, found), {})


def _first(x) -> np.ndarray:
    """The entry 00 or 00,00 at each depth."""
    return np.asarray(x).reshape(len(x), -1)[:, 0]


def _residual_section(study, found, name):
    value, stderr = found[name]
    Sigma = 4 * _first(study.sampled.G) * C_W * _first(study.sampled.S)
    step = study.setting.eps**2
    rows = []
    for t, published in PUBLISHED["V4_equation_residual_0000_n64"].items():
        i = study.place(float(t))
        noise = float(np.sqrt(4 * _first(study.sampled.V4)[i] * Sigma[i] / (NETWORKS * step)))
        reason = QUADRATURE if name == G_ONLY else "noise of a difference"
        rows.append(
            Row(
                f"residual[00,00] at t = {float(t):g}",
                published,
                noise,
                float(_first(value.total)[i]),
                float(_first(stderr.total)[i]),
                reason,
            )
        )
    title = "by the published rule" if name == RULE else "expectations converged"
    why = (
        "The published errors are not given; what stands here is that of a difference of V4 between neighbouring layers over "
        f"{NETWORKS:,} networks, sqrt(4 V4 Sigma / (networks eps^2))."
    )
    if name == G_ONLY:
        last = -1
        why = (
            f"With converged expectations the residual at t = {study.sampled.ts[last]:g} is {_first(value.total)[last]:.2f}, "
            f"a tenth of what the rule leaves: {_first(found[RULE][0].total)[last]:.2f}. "
            "It does not vanish: that is the closure's own error."
        )
    return Section(f"Residual of the V4 equation, {title}", why, rows)


def _parts_section(study, found):
    (value, stderr), (rule, _) = found[G_ONLY], found[RULE]
    tower, _ = covariance_residual(study.theories[TOWER], Model(Tanh(), C_W))
    rows = [
        Row(
            f"{part}[00,00] at t = 2",
            float(_first(getattr(tower, part))[-1]),
            None,
            float(_first(getattr(value, part))[-1]),
            float(_first(getattr(stderr, part))[-1]),
            "order 1/n" if part == "source" else "eps^2",
        )
        for part in ("transport", "source")
    ]
    share = _first(value.transport)[-1] / _first(value.total)[-1]
    why = (
        "The transport part by the Hermite tower; the source part is zero at leading order in 1/n. "
        f"Transport is {100 * share:.0f} % of the residual at t = 2: that published statement stands. Its size does not: "
        f"{_first(value.transport)[-1]:.2f} instead of {_first(rule.transport)[-1]:.2f} by the rule, beside a rate of V4 of about 29."
    )
    return Section("Residual of the V4 equation, its parts, converged", why, rows, "order 1/n")


def _source_section(study):
    published, K1 = PUBLISHED["U1_00_t0"], PUBLISHED["K1_00_T2_n64"]
    exact, _ = mean_source(study.sampled, Model(Tanh(), C_W))
    driven, driven_error = driven_K1(study.sampled, Model(Tanh(), C_W))
    bias = float(_first(study.quadrature_bias())[-1])
    wishart, _ = mean_source(study.theories[G_ONLY], Model(Tanh(), C_W))
    theirs, noise = (
        published["exact_measured"],
        float(np.sqrt(study.setting.width * _first(study.sampled.V_SS)[0] / NETWORKS)),
    )
    rows = [
        Row(
            "U1[00] at t = 0, measured, published rule",
            theirs,
            noise,
            float(_first(exact.exact)[0]) + _rule_bias(study),
            0.0,
        ),
        Row("U1[00] at t = 0, measured, converged", theirs, noise, float(_first(exact.exact)[0]), 0.0, QUADRATURE),
        Row(
            "U1[00] at t = 0 by the EFT, published rule",
            published["EFT_model"],
            None,
            float(_first(_closed_form(study, RULE))[0]),
            None,
        ),
        Row(
            "U1[00] at t = 0 by the EFT, converged",
            published["EFT_model"],
            None,
            float(_first(wishart.closure)[0]),
            None,
            QUADRATURE,
        ),
        Row(
            "K1[00] at t = 2 from the measured source, published K0",
            K1["exact_source"],
            K1["standard_error"],
            float(_first(driven)[-1]) + bias,
            float(_first(driven_error)[-1]),
        ),
    ]
    gap = _first(exact.exact)[-1], _first(exact.closure)[-1]
    why = (
        "At depth zero the neurons are independent, so U1 = n (E[S] - E_K0[ss]) is exactly zero, and with control variates it is sampled "
        "without noise; the value published as measured is n times the error of the rule for E[tanh^2]. "
        "The EFT has 1/2 Hess : Wishart / C_W there: it counts the sampling noise of G. At t = 2 the source is "
        f"{gap[0]:.3f} and the EFT's model of it, fed with the sampled V4 and K1, {gap[1]:.3f}."
    )
    return Section("What drives K1", why, rows)


def _rule_bias(study):
    """n times what a 32-point rule adds to E_K0[ss] at depth zero, with its sign in U1."""
    k = np.asarray(study.sampled.K0)[:1, :1, :1].reshape(1, 1)
    values = [expansions(Model(s, 1.0), k)[0][0, 0] for s in (Tanh(), GaussHermite(Tanh()))]
    return float(study.setting.width * (values[0] - values[1]))


def _closed_form(study, name):
    """1/2 Hess : Wishart / C_W of a theory at depth zero, by its own expectations."""
    activation = GaussHermite(Tanh()) if name == RULE else Tanh()
    return mean_source(study.theories[name], Model(activation, C_W))[0].closure


def _summary_section(study):
    """Mean relative errors over depth, as the published summary has them."""
    published, sampled, bias = PUBLISHED["mean_relative_errors_over_depth_n64"], study.sampled, study.quadrature_bias()
    mean, K1 = sampled.K0 + sampled.K1 / study.setting.width, sampled.K1 + bias
    driven = driven_K1(sampled, Model(Tanh(), C_W))[0] + bias
    rule, source = study.theories[RULE], study.theories[SOURCE]
    here = {
        "K0": _mean_error(rule.K0, mean),
        "V4_full": _mean_error(rule.V4, sampled.V4),
        "V4_source_only": _mean_error(source.V4, sampled.V4),
        "K1_exact_source": _mean_error(driven, K1),
        "K1_EFT": _mean_error(rule.K1, K1),
    }
    rows = [Row(name, value, None, here[name], None, "norm, depths not known") for name, value in published.items()]
    exact = study.theories[G_ONLY], study.theories[SIGMA], study.theories[TOWER]
    inputs = study.theories[TOWER].K0.shape[-1]
    V4, first = study.V4()[0], (slice(None), *(slice(inputs),) * 4)
    V4s = ", ".join(f"{100 * _mean_error(np.asarray(s.V4)[first], V4):.2g}" for s in exact)
    K1s = ", ".join(f"{100 * _mean_error(np.asarray(s.K1)[first[:3]], sampled.K1[first[:3]]):.2g}" for s in exact)
    why = (
        "Relative errors of the published theory, the Frobenius norm over all entries, averaged over the saved depths "
        "but t = 0. Which norm and which depths were used there is not known; near t = 0 relative errors of K1 are "
        "mostly noise of the sampled one. Converged, in per cent, "
        f"for G-only, sigma-kernel and tower: V4 {V4s}; K1 {K1s}."
    )
    return Section("Numerical summary: relative errors averaged over depth", why, rows)


def _mean_error(theory, truth):
    """Relative error in the Frobenius norm, averaged over the depths where there is anything to compare with."""
    gap, size = (np.linalg.norm(np.asarray(x).reshape(len(x), -1), axis=1) for x in (theory - truth, truth))
    return float(np.mean(gap[1:][size[1:] > 0] / size[1:][size[1:] > 0]))


def _figures(study, found):
    from ..diagnostic_plots import Line, plot_panels

    ts, setting = np.asarray(study.sampled.ts), str(study.setting)
    tower, _ = covariance_residual(study.theories[TOWER], Model(Tanh(), C_W))

    def lines(part):
        (value, stderr), (rule, rule_error) = found[G_ONLY], found[RULE]
        sampled = {
            "networks, 32-point rule": Line(ts, _first(getattr(rule, part)), _first(getattr(rule_error, part))),
            "networks, converged": Line(ts, _first(getattr(value, part)), _first(getattr(stderr, part))),
        }
        return sampled | {"theory at order 1/n": Line(ts, _first(getattr(tower, part)))}

    residual = plot_panels(
        {"transport": lines("transport"), "source": lines("source"), "all": lines("total")},
        title=f"Residual of the published V4 equation, [00,00]\n{setting}",
        ylabel=r"$dV_4/dt$ less the equation",
    )
    return {
        "figure-2-V4-residual": residual,
        "figure-3-source": plot_panels(
            _K1_panels(study), title=f"What drives $K_1$, and what fluctuations do to one neuron\n{setting}", ylabel=""
        ),
    }


def _K1_panels(study):
    """The source of K1, K1 driven by it, and the kurtosis of a neuron: networks and theories."""
    from ..diagnostic_plots import Line

    ts, model = np.asarray(study.sampled.ts), Model(Tanh(), C_W)
    results = {
        "networks": study.sampled,
        "Hermite tower": study.theories[TOWER],
        "EFT (G-only)": study.theories[G_ONLY],
    }

    def lines(diagnose):
        found = {label: diagnose(result) for label, result in results.items()}
        return {
            label: Line(ts, _first(value), _first(stderr) if label == "networks" else None)
            for label, (value, stderr) in found.items()
        }

    def source(part):
        return lambda result: tuple(getattr(x, part) for x in mean_source(result, model))

    def driven(result):
        return (result.K1, None) if result is study.theories[G_ONLY] else driven_K1(result, model)

    fed, fed_stderr = source("closure")(study.sampled)
    model_of_it = {"EFT's model of the source, sampled V4 and K1": Line(ts, _first(fed), _first(fed_stderr))}
    return {
        r"source $U_1 = n\,(E[S] - E_{K_0}[\sigma\sigma])$": lines(source("exact")) | model_of_it,
        "$K_1$ driven by the exact source": lines(driven),
        r"$n$ times excess kurtosis of a neuron": lines(kurtosis),
    }
