r"""The published numerical summary by its definition: relative errors of theories, averaged over depth.

Where K1 is small, its relative error is the sampling noise of the published networks. Their mean kernel has the noise X
/ n with $X' = X + dt\, \chi X + M'$ and independent $M'$, whose covariance is what the sources add to V4. The K1
measured there is K1 + X. The K1 accumulated from the measured source is K1 + X - M, M the sum of the M'.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import kernel_eft_jax as keft
from kernel_eft_jax.pairs import pack_covariance, unpack

from .item import Chapter, Row, WithError
from .main_job import MAIN_NETWORKS, MODEL, PUBLISHED, TANH, Study, Theory, V4_error
from .names import G_ONLY, RULE, SOURCE

DRAWS = 200  # of the published noise


def mean_error(theory, sampled, study: Study, start: int = 0) -> float:
    """Frobenius norm of the difference over that of `sampled`, averaged over all layers from `start` on.

    Between saved layers the error is a straight line; depths at which `sampled` is zero are left out.
    """
    gap, size = (np.linalg.norm(np.asarray(x).reshape(len(x), -1), axis=1) for x in (theory - sampled, sampled))
    layers, known = study.sampled.layers, size > 0
    every = np.interp(np.arange(start, layers[-1] + 1), layers[known], gap[known] / size[known])
    return float(np.mean(every))


def summary_section(study: Study) -> Chapter:
    """The summary over all entries of the four inputs. A tower for all four inputs gives the V4 at infinite width, to
    which the sampled excess is added."""
    published, sampled = PUBLISHED["mean_relative_errors_over_depth_n64"], study.sampled
    rule, source = study.theories[RULE], study.theories[SOURCE]
    tower = Theory(keft.HermiteTower(20), TANH, len(study.setting.K0)).solve(study.setting, sampled.layers)
    exact = np.asarray(tower.V4)

    def errors(q):
        mean, V4 = sampled.K0 + q.K1 / study.setting.width, exact + q.V4_excess
        cases = (rule.K0, mean), (rule.V4, V4), (source.V4, V4)
        return tuple(mean_error(np.asarray(theory), truth, study) for theory, truth in cases)

    found = zip(("K0", "V4_full", "V4_source_only"), *sampled.jackknife(errors), strict=True)
    V4_noise = V4_error(1.0, MAIN_NETWORKS)
    noise = {"K0": V4_noise / np.sqrt(2 * study.setting.width), "V4_full": V4_noise, "V4_source_only": V4_noise}
    rows = [Row(name, WithError(published[name], noise[name]), WithError(float(v), float(e))) for name, v, e in found]
    rows += [Row(name, WithError(published[name]), value) for name, value in noisy_K1(study).items()]
    why = (
        "A relative error is the Frobenius norm of theory - sampled over that of sampled, averaged over layers 0 to L "
        "(K1: 1 to L). The theory is by the 32-point rule. The errors of the published V4 rows are those of one entry. "
        "The two rows of K1 show the noise of the published K1 at small depth. To compare, the same noise is added to "
        f"K1 here, drawn {DRAWS} times from its law; the error is the scatter from draw to draw."
    )
    return Chapter("Numerical summary: relative errors averaged over depth", why, rows)


def noisy_K1(study: Study) -> dict[str, WithError]:
    """The mean relative errors of K1 with the noise of the published networks, by their published names."""
    mic = study.sampled.K1 + study.quadrature_bias()
    eft = np.asarray(study.theories[RULE].K1)
    found = [
        (mean_error(mic + X - M, mic + X, study, start=1), mean_error(eft, mic + X, study, start=1))
        for X, M in zip(*published_noise(study), strict=True)
    ]
    values = zip(("K1_exact_source", "K1_EFT"), np.mean(found, axis=0), np.std(found, axis=0), strict=True)
    return {name: WithError(float(value), float(error)) for name, value, error in values}


def published_noise(
    study: Study,
) -> tuple[Float[np.ndarray, "draws T N N"], Float[np.ndarray, "draws T N N"]]:
    """n times the noise of the published mean kernel, X, and its sources M alone, at the saved depths."""
    rng, sources = np.random.default_rng(0), pack_covariance(np.asarray(study.theories[SOURCE].V4))
    new = np.diff(sources, axis=0, prepend=np.zeros_like(sources[:1])) * study.setting.width / MAIN_NETWORKS
    packed = [rng.multivariate_normal(np.zeros(len(C)), C, DRAWS) for C in new]
    drawn = np.asarray(unpack(jnp.asarray(np.stack(packed, axis=1))))
    chi: Callable = jax.jit(jax.vmap(MODEL.chi, (None, 0)))
    K0, ts = np.asarray(study.theories[G_ONLY].K0), study.sampled.ts
    X = [drawn[:, 0]]
    for i, dt in enumerate(np.diff(ts)):
        X.append(X[-1] + dt * np.asarray(chi(K0[i], X[-1])) + drawn[:, i + 1])
    return np.stack(X, axis=1), np.cumsum(drawn, axis=1)
