r"""Averages of an activation over z of mean + width z, z standard normal, at many means at once.

Nodes of z are equidistant, the same for all means and widths, so that the coefficients of all Hermite polynomials are
one matrix product. The trapezoidal rule on these nodes is exact to rounding for smooth functions, until the function
becomes too steep in z. This shows in every third node alone, whose error is the cube root of that of all nodes: where
the three thirds disagree, nodes that crowd where the function is steep take the average. Functions with kinks have
`Activation.smoothed_orders`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..activations import Activation
from ..activations.base import rule
from ..linear import matmul
from ..quadrature import derivatives, even_rule, hermite_means, hermite_polynomials

# Enough for tanh as long as width^2 is below 4, for GELU below 12. Odd: zero, where most functions are steepest, is a
# node.
EVEN_NODES = 161
# Where thirds of the nodes average s''^2 to this accuracy, all nodes average s, s', s'' with he_j to 1e-11 or better.
COARSE = 0.05
Orders = tuple[tuple[int, int], ...]


def averages(
    activation: Activation,
    mean: Float[Array, "B X"],
    width: Float[Array, " B"],
    weights: Float[Array, " X"],
    terms: int,
    products: Orders,
) -> tuple[Float[Array, "terms 3 B X"], Float[Array, "products B X"]]:
    """E[s^(m) he_j], m = 0, 1, 2 and j < terms, and E[s^(m) s^(n)] for each (m, n) of `products`.

    `weights` say how much each mean counts where the accuracy is judged.
    """

    if activation.kinks:
        orders = jax.vmap(lambda mean, width: activation.smoothed_orders(mean, width, terms))(mean, width)
        squares = [jax.vmap(partial(activation.smoothed_product, m, n))(mean, width) for m, n in products]
        return orders.transpose(3, 1, 0, 2), jnp.stack(squares)

    def by_crowded_nodes():
        y, w = rule(activation, mean, width[:, None])
        s = jnp.stack(derivatives(activation, 2)(mean[:, :, None] + width[:, None, None] * y))
        orders = jax.vmap(partial(hermite_means, terms=terms), in_axes=(1, 0))(s * w[None], y)
        return orders.transpose(3, 1, 0, 2), jnp.stack([jnp.sum(s[m] * s[n] * w, axis=-1) for m, n in products])

    z, v = even_rule(EVEN_NODES, mean.dtype)
    s = derivatives(activation, 2)(mean[:, :, None] + width[:, None, None] * z[None, None])
    orders = jnp.einsum("jz,mbxz->jmbx", hermite_polynomials(z, terms) * v[None], jnp.stack(s), precision="highest")
    squares = jnp.stack([s[m] * s[n] for m, n in products])
    squares = jnp.einsum("z,pbxz->pbx", v, squares, precision="highest")
    # A wave over three nodes has mean zero if the thirds agree. Its cosine or its sine sees a function wherever the
    # function lies. Halves would not do: both have the same mean of an even function, right or wrong, where zero lies
    # between two nodes.
    turn = 2 * np.pi / 3 * np.arange(z.size)
    waves = np.stack([np.ones_like(turn), np.cos(turn), np.sin(turn)]).astype(z.dtype)
    whole, cosine, sine = jnp.einsum("cz,bxz->cbx", waves * v[None], s[2] * s[2], precision="highest")
    whole, missed = matmul(whole, weights), matmul(jnp.abs(cosine) + jnp.abs(sine), weights)
    # Nodes that see no s'' at all say nothing: the function may be steep between two of them.
    return jax.lax.cond(jnp.all(missed < COARSE * whole), lambda: (orders, squares), by_crowded_nodes)
