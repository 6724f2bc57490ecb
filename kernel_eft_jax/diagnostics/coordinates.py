r"""A predicted coordinate check: how the stream of a network grows before training, and how much networks of different
seeds differ.

The mean square of the stream's coordinates for input a is $G_{aa}$. At width n, to order 1/n,

$$E[G_{aa}] = K_{0;aa} + K_{1;aa} / n, \qquad \mathrm{sd}[G_{aa}] = \sqrt{V_{4;aa,aa} / n}$$

so theory alone says how the stream grows, how far the mean at width n is from that of infinite width (the drift), and
how much networks of different seeds differ (the spread). Comparison with your own activations shows whether your code
follows.
"""

from collections.abc import Mapping, Sequence

import equinox as eqx
import numpy as np
from jaxtyping import ArrayLike, Float, PRNGKeyArray

from ..checks import (
    ON_HOST,
    check_count,
    check_flag,
    check_kernel,
    check_key,
    check_kind,
    check_layers,
    check_positive,
    check_untraced,
)
from ..depths import check_eps
from ..ensemble.estimate import LEAST_ENSEMBLE
from ..model import Model
from ..network import fitting_width
from ..showing import Shown
from ..trajectory import Solution, solve
from .validity import (
    PILOT,
    REFERENCE,
    TRUNCATION,
    WINDOW_QUANTITIES,
    Width,
    answer,
    sufficient_widths,
    truncation_shares,
)
from .widths import WidthCheck, kernels_by_width, layer_names, width_check

DEFAULT_DEPTHS = 24  # so many layers behind the input, if the caller names none
COLUMNS = ("mean square", "seed to seed", "drift", "cosine 01")
NOT_COVERED = (
    "Not in these numbers: attention blocks, which add increments of their own between those of the feed-forward "
    "blocks; batch normalisation; dropout; everything that training does."
)


class CoordinateCheck(Shown):
    """The predicted stream of networks of one width, and what was measured in networks of the user's own.

    `theory` holds K0, V4 and K1 at the saved layers. `enough` maps "V4" and "K1" to the sampled widths: the least that
    `suffices` is the width from which on order 1/n is right to `tolerance`. Without a key `enough` is empty, and no
    width is sampled where the theory itself leaves out more than a quarter of the tolerance. `own` holds the user's
    networks by width.
    """

    theory: Solution
    width: int
    tolerance: float
    enough: Mapping[str, tuple[Width, ...]]
    own: WidthCheck | None

    @property
    def layers(self) -> tuple[int, ...]:
        """The saved layers."""
        assert self.theory.layers is not None
        return self.theory.layers

    @property
    def mean(self) -> Float[np.ndarray, "T N"]:
        """Mean square of the stream's coordinates, E[G_aa] = K0 + K1 / n, for each layer and input."""
        return self.mean_at(self.width)

    @property
    def spread(self) -> Float[np.ndarray, "T N"]:
        """Standard deviation of the mean square from seed to seed, sqrt(V4 / n), for each layer and input."""
        return self.spread_at(self.width)

    @property
    def drift(self) -> Float[np.ndarray, "T N"]:
        """The change of the mean by the finite width, K1 / n, for each layer and input."""
        return _diagonal(self.theory.K1) / self.width

    def mean_at(self, width: int) -> Float[np.ndarray, "T N"]:
        """The mean square that networks of another width have."""
        return _diagonal(self.theory.K0) + _diagonal(self.theory.K1) / width

    def spread_at(self, width: int) -> Float[np.ndarray, "T N"]:
        """The standard deviation of the mean square from seed to seed at another width."""
        return _spread(self.theory.V4, width)

    def measured(self, index: int) -> "MeasuredStream":
        """Mean and spread of the user's networks of one width, by the place of the width in `own`."""
        if self.own is None:
            raise ValueError("This check has no networks of yours: give `coordinate_check` their kernels as `own`.")
        count = len(self.own.widths)
        if not 0 <= index < count:
            raise ValueError(
                f"Argument `index` must be the place of one of the {count} widths given as `own`, from 0 on, but is "
                f"{index}."
            )
        width, networks = int(self.own.widths[index]), int(self.own.networks[index])
        mean = _diagonal(self.theory.K0) + _diagonal(self.own.K1[index]) / width
        spread = _spread(self.own.V4[index], width)
        return MeasuredStream(width, networks, mean, spread / np.sqrt(networks), spread)

    def __repr__(self) -> str:
        depth, theory, table = self.layers[-1], self.theory, self.table()
        lines = [f"Stream of {depth} blocks of width {self.width} by {theory.closure!r}: {theory.model!r}"]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        return "\n".join([*lines, *self.sentences()])

    def table(self) -> list[list[str]]:
        """`rows` as text, under a heading."""
        text = [
            [str(self.layers[i]), f"{mean:.5g}", f"± {spread:.3g} %", f"{drift:+.2g} %", *(f"{c:.4f}" for c in cosine)]
            for i, (mean, spread, drift, *cosine) in self.rows()
        ]
        return [["layer", *COLUMNS[: len(text[0]) - 1]], *text]

    def rows(self) -> list[tuple[int, tuple[float, ...]]]:
        """For up to nine saved layers: the layer's place; mean square, spread and drift of input 0 (the last two in per
        cent); and the cosine of inputs 0 and 1."""
        K0, mean, table = np.asarray(self.theory.K0, np.float64), self.mean[:, 0], []
        for i in np.unique(np.linspace(0, len(mean) - 1, 9).astype(int)).tolist():
            spread, drift = (100 * x[i, 0] / mean[i] for x in (self.spread, self.drift))
            drift = round(drift, 6) + 0.0  # behind a norm the drift is zero up to rounding
            cosine = (K0[i, 0, 1] / np.sqrt(K0[i, 0, 0] * K0[i, 1, 1]),) if K0.shape[-1] > 1 else ()
            table.append((i, (mean[i], spread, drift, *cosine)))
        return table

    def sentences(self) -> list[str]:
        """The sentences below the table: growth, the width from which order 1/n is enough, a comparison with the user's
        networks, and what is not covered."""
        mean = self.mean[:, 0]
        growth = [
            f"From the first of these layers to the last the mean square grows by a factor of {mean[-1] / mean[0]:.4g}."
        ]
        meaning = [
            "Seed to seed: one standard deviation of the mean square. Drift: what this width changes of the mean at "
            "infinite width." + " Cosine 01: of the angle between inputs 0 and 1." * (self.mean.shape[1] > 1)
        ]
        return [*growth, *meaning, *self._left_out(), *self._enough(), *self._own(), NOT_COVERED]

    def _left_out(self):
        V4, of_V4 = map(_variances, self.theory.significant("V4"))
        spread = float(np.max(of_V4 / np.where(V4 > 0, V4, 1))) / 2
        drift = float(np.max(_diagonal(self.theory.significant("K1")[1]) / self.width / self.mean))
        if spread == drift == 0:
            yield "The theory is exact at order 1/n: its degree leaves nothing out."
        elif np.isfinite(spread + drift):
            yield (
                f"The degree of the theory leaves out at most {100 * spread:.1g} % of the spread, and "
                f"{100 * drift:.1g} % of the mean square in the drift."
            )
        else:
            yield "The degree of the theory is too low to tell what it leaves out of spread or drift."
        expectations = float(self.theory.stats["expectation_error"])
        if expectations > 1e-6:
            yield f"The theory's Gaussian expectations are right to {100 * expectations:.1g} %."

    def _enough(self):
        worst = " of the worst pair of inputs" if self.mean.shape[1] > 1 else ""
        for quantity, sampled in self.enough.items():
            name = "spread from seed to seed" if quantity == "V4" else "drift"
            right = f"right to {100 * self.tolerance:.3g} % for the {name}{worst}"
            if not sampled:
                yield f"No networks were sampled: the theory leaves out too much to tell where order 1/n is {right}."
                continue
            found = answer(sampled, self.tolerance)
            if found.suffices(self.tolerance):
                yield f"From width {found.width} on order 1/n is {right}."
            elif found.confirms(self.tolerance):
                few = f"The networks of width {found.width} are too few to tell"
                yield f"{few} whether order 1/n is {right}: take more."
            else:
                yield f"At width {found.width} order 1/n is not yet {right}."

    def _own(self):
        for index in range(0 if self.own is None else len(self.own.widths)):
            yours = self.measured(index)
            predicted, spread = self.mean_at(yours.width), self.spread_at(yours.width)
            off = np.abs(yours.mean - predicted) / np.maximum(yours.stderr, np.finfo(float).tiny)
            i, a = np.unravel_index(off.argmax(), off.shape)
            places = max(0, 1 - int(np.floor(np.log10(max(yours.stderr[i, a], 1e-12)))))
            mine, error, theirs = (f"{x[i, a]:.{places}f}" for x in (yours.mean, yours.stderr, predicted))
            ratios = 100 * yours.spread[-1, 0] / yours.mean[-1, 0], 100 * spread[-1, 0] / predicted[-1, 0]
            yield (
                f"Your {yours.networks} networks of width {yours.width}: the mean square is {mine} ± {error} at layer "
                f"{self.layers[i]}, where it is farthest from the predicted {theirs}, by {off[i, a]:.1f} standard "
                f"errors. Seed to seed ± {ratios[0]:.3g} % at the last layer, predicted ± {ratios[1]:.3g} %."
            )


class MeasuredStream(eqx.Module):
    """Mean square of the stream in networks of the user's own, its standard error, and its spread from seed to seed."""

    width: int
    networks: int
    mean: Float[np.ndarray, "T N"]
    stderr: Float[np.ndarray, "T N"]
    spread: Float[np.ndarray, "T N"]


def coordinate_check(
    model: Model,
    K0: Float[ArrayLike, "N N"],
    *,
    width: int,
    depth: int,
    eps: Float[ArrayLike, "..."],
    layers: Sequence[int] | None = None,
    own: Mapping[int, Float[ArrayLike, "B T N N"]] | None = None,
    key: PRNGKeyArray | None = None,
    tolerance: float = 0.05,
    networks: int = 4096,
    progress: bool = True,
) -> CoordinateCheck:
    r"""How the stream of networks of one width grows with depth, how much it differs from seed to seed, and from which
    width on order 1/n is enough.

    The numbers are those of the exact theory at `layers`, by default up to 25 of them; no network is drawn for them.
    The stacks of `recipes` are arguments of this function: `coordinate_check(**recipes.gpt2(width=768, depth=12))`.

    The check does not cover attention or trained networks: the printed check lists what is left out.

    Args:
        model: The block.
        K0: Kernel of the inputs, where the stream starts.
        width: Neurons of the stream.
        depth: Number of blocks.
        eps: The step of a block, one number or one for each block.
        layers: Numbers of blocks after which the stream is reported; 0 is the input, `depth` the last block.
        own: Kernels G of networks of your own by their width, at the same layers, one network a row (16 or more).
        key: Of `jax.random`; draws `networks` networks of each width to find the width from which on order 1/n is
            right to `tolerance`. Without a key there is no such search.
        tolerance: The largest relative error of V4 and K1 that is tolerable.
        networks: How many networks of each width are drawn.
        progress: Whether to show a bar while networks are drawn.

    Returns:
        The predicted stream at the reported layers, the sampled widths, and the comparison with your own networks.

    Raises:
        ValueError: For arguments that make no sense.
        MemoryError: As `solve` does.
        RuntimeError: As `solve` does.
    """
    check_untraced("coordinate_check", ON_HOST, model, K0, eps)
    check_kind(model, Model, "model")
    width, depth = check_count(width, "width"), check_count(depth, "depth")
    evenly = np.unique(np.round(np.linspace(0, depth, DEFAULT_DEPTHS + 1))).astype(int).tolist()
    saved = check_layers(evenly if layers is None else layers, "layers", depth)
    K0 = check_kernel(K0)
    check_positive(tolerance, "tolerance")
    check_flag(progress, "progress")
    networks = check_count(networks, "networks", least=LEAST_ENSEMBLE)
    if key is not None:
        check_key(key)
    kernels = None if own is None else _check_own(own, saved, K0.shape)  # before the work
    eps = check_eps(eps, model.decay, depth)
    theory = solve(model, K0, layers=saved, eps=eps if eps.ndim == 0 else eps[: saved[-1]])
    own_check = None if kernels is None else width_check(kernels, theory)
    enough: dict[str, tuple[Width, ...]] = {}
    if key is not None:
        enough = dict.fromkeys(WINDOW_QUANTITIES, ())
        exact = _at_the_last_block(theory, K0, depth, eps, tolerance)
        if exact is not None:
            choices = {"pilot_width": fitting_width(model, PILOT), "networks": networks, "tolerance": tolerance}
            enough = sufficient_widths(exact, K0, key=key, **choices, progress=progress)
    return CoordinateCheck(theory, width, tolerance, enough, own_check)


def _at_the_last_block(theory, K0, depth, eps, tolerance):
    """A theory of the last block for networks to be compared with: that of the check, where it is exact enough; none,
    where no theory is."""
    if theory.layers[-1] != depth:
        theory = solve(theory.model, K0, layers=[depth], eps=eps)
    if _leaves_out_little(theory, tolerance):
        return theory
    theory = solve(theory.model, K0, layers=[depth], eps=eps, closure=REFERENCE)
    return theory if _leaves_out_little(theory, tolerance) else None


def _leaves_out_little(theory, tolerance):
    """Whether the truncation at the last layer is small beside the tolerance; false where it is not known."""
    return all(share[-1] <= TRUNCATION * tolerance for share in truncation_shares(theory).values())


def _check_own(own, layers, shape):
    """Kernels of the user's networks by their width."""
    named = ", ".join(map(str, layers[:4])) + (" and so on" if len(layers) > 4 else "")
    remedy = f"Give the layers of your kernels as `layers`; here the layers are {named}."
    return kernels_by_width(own, (len(layers), *shape), layer_names(layers), "own", remedy)


def _diagonal(K):
    """Entries aa for each layer."""
    return np.einsum("taa->ta", np.asarray(K, np.float64))


def _variances(V4):
    """Entries aa,aa for each layer."""
    return np.einsum("taaaa->ta", np.asarray(V4, np.float64))


def _spread(V4, width):
    return np.sqrt(_variances(V4) / width)
