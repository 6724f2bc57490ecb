r"""The main job of the published study: sample, solve, compare; Figures 1 and 3.

The published numerics take Gaussian expectations by a 32-point Gauss-Hermite rule, which is not converged for tanh.
With this rule and the published Euler layers `solve` reproduces the published theory digit by digit. The last column of
the tables has the same theory with converged expectations.
"""

import json
import os
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, PRNGKeyArray

import kernel_eft_jax as keft

from .euler import Euler, SourceOnly
from .gauss_hermite import GaussHermite, tanh_squared
from .item import Chapter, Drawing, Item, Row, WithError, entry
from .names import G_ONLY, NETWORKS, PUBLISHED_NETWORKS, RULE, SIGMA, SOURCE, TOWER

PUBLISHED = json.loads(files("kernel_eft_jax.studies.kawase_ota").joinpath("published.json").read_text())
MAIN_NETWORKS, SWEEP_NETWORKS = (PUBLISHED["settings"][part]["networks"] for part in ("main", "sweeps"))
SYMBOLS = {"K0[00]": "K_{0;00}", "K0[01]": "K_{0;01}", "eps": r"\epsilon"}
C_W = 2.0
TANH, RULE_32 = keft.Tanh(), GaussHermite(keft.Tanh())
MODEL, RULE_MODEL = keft.Model(TANH, C_W), keft.Model(RULE_32, C_W)


class Setting(NamedTuple):
    """Input kernel and network."""

    K0: Float[np.ndarray, "N N"]
    width: int
    depth: int
    eps: float

    def __str__(self) -> str:
        K0 = f"K0[00] = {self.K0[0, 0]:g}" + (f", K0[01] = {self.K0[0, 1]:g}" if len(self.K0) > 1 else "")
        return f"tanh, C_W = {C_W:g}, C_b = 0, {K0}, n = {self.width}, eps = {self.eps:g}, {self.depth} layers"

    @property
    def symbols(self) -> str:
        """The same for the title of a figure."""
        return re.sub(r"(\S+) = ([^,]+)", lambda found: f"${SYMBOLS.get(found[1], found[1])} = {found[2]}$", str(self))


MAIN = Setting(0.6 + 1.4 * np.eye(4), 64, 800, 0.05)


class Theory(NamedTuple):
    """A closure at the published settings, for the first few inputs; that is enough, since V4_ab,cd depends on the
    inputs a, b, c, d alone."""

    closure: keft.Closure
    activation: keft.Activation
    inputs: int

    def solve(self, setting: Setting, layers: Int[np.ndarray, " T"], C_W: float = C_W) -> keft.Solution:
        """The theory at these layers. The published rule has an error that `solve` would refuse, and is let through."""
        model, K0 = keft.Model(self.activation, C_W), setting.K0[: self.inputs, : self.inputs]
        throw = not isinstance(self.activation, GaussHermite)
        return keft.solve(model, K0, layers=layers.tolist(), eps=setting.eps, closure=self.closure, throw=throw)


THEORIES: Mapping[str, Theory] = {
    TOWER: Theory(keft.HermiteTower(40), TANH, 2),
    G_ONLY: Theory(Euler(), TANH, 4),
    RULE: Theory(Euler(), RULE_32, 4),
    SIGMA: Theory(keft.SigmaKernel(), TANH, 2),
    SOURCE: Theory(SourceOnly(), RULE_32, 4),
}


class Study(NamedTuple):
    """Sampled networks of one setting, and theories at the same layers."""

    setting: Setting
    sampled: keft.Estimate
    theories: Mapping[str, keft.Solution]

    def V4(self) -> tuple[Float[np.ndarray, "T M M M M"], Float[np.ndarray, "T M M M M"]]:
        """V4 of the sampled networks between the inputs that the tower was solved for, and its standard error.

        By control variates: the value at infinite width, from the tower, plus the sampled excess over this value.
        """
        exact = np.asarray(self.theories[TOWER].V4)
        own = (slice(None), *(slice(exact.shape[-1]),) * 4)
        return exact + np.asarray(self.sampled.V4_excess)[own], np.asarray(self.sampled.stderr.V4_excess)[own]

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
    activation: keft.Activation = TANH,
    checkpoint: str | os.PathLike | None = None,
    progress: bool = True,
) -> Study:
    """Sample networks, by default of the published setting, n = 64 and 800 layers at eps = 0.05, and solve theories
    layer by layer."""
    K0, width, depth, eps = setting
    sizes = {"width": width, "depth": depth, "eps": eps, "networks": networks}
    model = keft.Model(activation, C_W)
    sampled = keft.estimate(model, K0, **sizes, key=key, checkpoint=checkpoint, progress=progress)
    return Study(setting, sampled, {name: theory.solve(setting, sampled.layers) for name, theory in theories.items()})


def V4_error(value: float, networks: int) -> float:
    """Standard error of V4 of nearly Gaussian kernels, sqrt(2 / networks) V4. It stands for the errors of published V4,
    which are not given."""
    return value * (2 / networks) ** 0.5


def main_item(study: Study) -> Item:
    """K0, V4 and K1 of the main job."""
    theories = {f"theory-{name}": solution for name, solution in study.theories.items()}
    return Item(main_sections(study), _figures(study), {"sampled": study.sampled, **theories})


def main_sections(study: Study) -> list[Chapter]:
    """The tables of the main job: the published theory, the sampled networks, and the theories that hold. A study of
    one input is enough for them."""
    return [_theory(study), _sampled(study), _what_holds(study)]


def _theory(study):
    rule, exact = study.theories[RULE], study.theories[G_ONLY]
    published = PUBLISHED["theory_at_T2"]
    numbers = [("K0[00] at t = 2", published["K0_00"], "K0", -1)]
    numbers += [
        (f"V4[00,00] at t = {p['t']}", p["theory"], "V4", study.place(p["t"])) for p in PUBLISHED["V4_0000_n64"]
    ]
    numbers += [("K1_EFT[00] at t = 2", published["K1_EFT_00"], "K1", -1)]
    rows = [
        Row(quantity, WithError(theirs), entry(getattr(rule, name), at=i), entry(getattr(exact, name), at=i))
        for quantity, theirs, name, i in numbers
    ]
    (value, second), (value_32, second_32) = (np.ravel(tanh_squared(s, np.array([4.0]))) for s in (TANH, RULE_32))
    why = (
        "Same equations, same layers, same 32-point rule: the published theory comes back. The rule is not converged "
        f"for tanh. At K = 4 its E[tanh^2] is too large by {value_32 - value:.1e}. Its E[(tanh^2)''], which is chi, is "
        f"{second_32:.4f}, and the converged value is {second:.4f}. These errors are the whole difference to the last "
        "column."
    )
    return Chapter("The published theory (GOnly)", why, rows)


def _sampled(study):
    sampled, published, bias = study.sampled, PUBLISHED["K1_00_T2_n64"], float(study.quadrature_bias()[-1, 0, 0])
    networks = MAIN_NETWORKS
    rows = []
    for p in PUBLISHED["V4_0000_n64"]:
        theirs = WithError(p["sampled"], V4_error(p["sampled"], networks))
        rows.append(Row(f"V4[00,00] at t = {p['t']}", theirs, entry(*study.V4(), at=study.place(p["t"]))))
    plain = entry(sampled.V4, sampled.stderr.V4)
    K1 = entry(sampled.K1, sampled.stderr.K1)
    mic = WithError(published["microscopic"], published["standard_error"])
    rows += [
        rows[-1]._replace(quantity="V4[00,00] at t = 2.0, no control variate", here=plain),
        Row("K1_mic[00] at t = 2", mic, K1._replace(value=K1.value + bias), K1),
    ]
    why = (
        f"K1_mic is n (E[G] - K0). The published K0[00] is too large by {-bias / study.setting.width:.5f}, and n times "
        f"this error is {bias:+.3f} of the published K1_mic; the last column is without the error. The paper gives no "
        "errors of V4: sqrt(2 / networks) V4 is used. Values of one ensemble at several depths are correlated."
    )
    title = f"Sampled networks, n = {study.setting.width}: {networks:,} published, {sampled.networks:,} here"
    return Chapter(title, why, rows)


def _what_holds(study):
    """SigmaKernel and HermiteTower beside the published networks."""
    V4s, K1s = ({name: entry(getattr(s, q)).value for name, s in study.theories.items()} for q in ("V4", "K1"))
    wide, mic = PUBLISHED["V4_0000_T2_by_width"][-1], PUBLISHED["K1_00_T2_n64"]
    V4 = WithError(wide["sampled"], V4_error(wide["sampled"], SWEEP_NETWORKS))
    K1 = WithError(mic["microscopic"] - float(study.quadrature_bias()[-1, 0, 0]), mic["standard_error"])
    rows = []
    for name in (SIGMA, TOWER):
        rows += [
            Row(f"V4: sampled, n = {wide['n']}; here {name}", V4, WithError(V4s[name])),
            Row(f"K1_mic less the error of K0; here {name}", K1, WithError(K1s[name])),
        ]
    why = (
        f"With converged expectations the V4 of GOnly is off by {100 * (V4s[G_ONLY] / V4s[TOWER] - 1):.1f} % at "
        "infinite width (published: -12 % of the sampled one at n = 64), and its K1_EFT is "
        f"{K1s[G_ONLY] / K1s[TOWER]:.1f} times too large (published: 1.2). SigmaKernel and HermiteTower "
        "agree with the published networks."
    )
    return Chapter("What holds, component [00] at t = 2", why, rows)


def _figures(study):
    ts, sampled, bias, (V4, V4_stderr) = study.sampled.ts, study.sampled, study.quadrature_bias(), study.V4()
    mean, mean_stderr = (x / study.setting.width for x in (sampled.K1, sampled.stderr.K1))
    driven = keft.driven_K1(sampled, MODEL).value
    K0, K1, covariance, errors = {}, {}, {}, {}
    for ab in ((0, 0), (0, 1)):
        name, at, at_pair = f"{ab[0]}{ab[1]}", (slice(None), *ab), (slice(None), *ab, *ab)
        K0[f"$E[G_{{{name}}}]$ and $K_{{0;{name}}}$"] = {
            NETWORKS: (ts, (sampled.K0 + mean)[at], mean_stderr[at]),
            **{label: (ts, np.asarray(s.K0)[at]) for label, s in study.theories.items() if label in (G_ONLY, RULE)},
        }
        theories = {label: (ts, np.asarray(s.V4)[at_pair]) for label, s in study.theories.items()}
        networks = {NETWORKS: (ts, V4[at_pair], V4_stderr[at_pair])}
        covariance[f"$V_{{4;{name},{name}}}$"] = networks | {k: v for k, v in theories.items() if k != SIGMA}
        errors[f"$V_{{4;{name},{name}}}$: theory / networks $-$ 1 (%)"] = {
            NETWORKS: (ts, 0 * ts, (100 * V4_stderr / V4)[at_pair]),
            **{k: (ts, 100 * (value / V4[at_pair] - 1)) for k, (_, value) in theories.items() if k != SOURCE},
        }
        K1[f"$K_{{1;{name}}}$"] = {
            NETWORKS: (ts, sampled.K1[at], sampled.stderr.K1[at]),
            **{label: (ts, np.asarray(s.K1)[at]) for label, s in study.theories.items() if label != SOURCE},
            "networks with the 32-point $K_0$": (ts, (sampled.K1 + bias)[at], sampled.stderr.K1[at]),
            "driven by the measured source": (ts, driven[at]),
        }
    mic = PUBLISHED["K1_00_T2_n64"]
    K1["$K_{1;00}$"][PUBLISHED_NETWORKS] = (ts[-1:], [mic["microscopic"]], [mic["standard_error"]])
    setting = f"{study.setting.symbols}, {sampled.networks:,} networks"
    return {
        "figure-1-mean-and-covariance": Drawing(f"Mean and covariance of the kernel\n{setting}", K0 | covariance),
        "figure-3-mean-correction": Drawing(f"Correction of the mean kernel, times $n$\n{setting}", K1),
        "errors-of-the-theories": Drawing(f"Covariance of the kernel: errors of the theories\n{setting}", errors),
    }
