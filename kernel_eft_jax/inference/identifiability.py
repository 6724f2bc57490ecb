r"""Sentences about parameters that no data can tell apart.

Along a lost direction, one of no information, the law of the data does not change. If all parameters that change along
it are nonzero, their relative changes are $d \ln \theta_i = \ell_i$. To first order the data determine the products
$\prod \theta_i^{a_i}$ with $a \cdot \ell = 0$ for every lost direction.
"""

from itertools import combinations

import numpy as np
from jaxtyping import Float

# A component below a hundredth of the largest one is left out of the sentence.
SMALL = 0.01
SIMPLE = 1e-3  # an exponent this close to a multiple of 1/2 counts as one


def explain(
    names: tuple[str, ...],
    values: Float[np.ndarray, " p"],
    scales: Float[np.ndarray, " p"],
    lost: Float[np.ndarray, "k p"],
) -> str:
    """The lost directions, orthonormal in units of `scales`, in a sentence or two."""
    reach = np.linalg.norm(lost, axis=0)
    alone = reach > 1 - SMALL**2
    sentences = [
        f"`{names[i]}` alone leaves the law of the data unchanged at these values: no data can tell it."
        for i in np.flatnonzero(alone)
    ]
    shared = np.flatnonzero((reach > SMALL) & ~alone)
    count = len(lost) - int(alone.sum())
    if count and shared.size:
        basis = np.linalg.svd(lost[:, shared], full_matrices=False)[2][:count]
        named, change = [names[i] for i in shared], basis * scales[shared]
        products = told_products(named, values[shared], change)
        if products:
            sentences.append(
                f"At these values the data tell only {' and '.join(products)}, not each parameter by itself."
            )
        else:
            sentences += [
                f"{in_words(named, d, scales[shared])} leaves the law of the data unchanged at these values: no data "
                "can tell it."
                for d in basis
            ]
    return " ".join(sentences)


def told_products(names: list[str], values: Float[np.ndarray, " p"], change: Float[np.ndarray, "k p"]) -> list[str]:
    """The products of powers that do not change along the lost directions; none if the exponents are no multiples of
    1/2."""
    if (values == 0).any() or len(change) >= len(names):
        return []
    relative = (change / values).T
    best, found = np.inf, []
    for held in combinations(range(len(names)), len(change)):
        inner = relative[list(held)]
        if np.linalg.cond(inner) > 1e3:
            continue
        others = [i for i in range(len(names)) if i not in held]
        exponents = -relative[others] @ np.linalg.inv(inner)
        rough = np.abs(2 * exponents - np.round(2 * exponents)).max()
        # Whole exponents before halves, small ones before large ones.
        cost = np.abs(exponents - np.round(exponents)).round(2).sum() + 0.01 * np.abs(exponents).sum()
        if rough < SIMPLE and np.abs(exponents).max() < 9 and cost < best - 1e-6:
            best = cost
            found = [
                _monomial(names, {names[i]: 1.0} | {names[j]: e for j, e in zip(held, row, strict=True)})
                for i, row in zip(others, exponents, strict=True)
            ]
    return found


def in_words(
    names: list[str] | tuple[str, ...], direction: Float[np.ndarray, " p"], scales: Float[np.ndarray, " p"]
) -> str:
    """A direction, given in units of `scales`, as names and the ratio of their changes."""
    parts = [i for i in np.argsort(-np.abs(direction)) if abs(direction[i]) > SMALL * np.abs(direction).max()]
    if len(parts) == 1:
        return f"`{names[parts[0]]}` alone"
    change = direction * scales
    ratio = " : ".join(f"{change[i] / change[parts[0]]:.3g}" for i in parts)
    return f"The combined change {' : '.join(f'`{names[i]}`' for i in parts)} = {ratio}"


def _monomial(names: list[str], exponents: dict[str, float]) -> str:
    halves = {name: round(2 * exponents[name]) / 2 for name in names if name in exponents}

    def factors(sign):
        powers = [(name, sign * e) for name, e in halves.items() if sign * e > 0]
        return " * ".join(f"`{name}`" + (f"^{e:g}" if e != 1 else "") for name, e in powers)

    above, below = factors(1), factors(-1)
    return above + (f" / ({below})" if " * " in below else f" / {below}" if below else "")
