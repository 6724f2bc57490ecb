r"""The model: one block of a residual network, for theory and for networks.

$$\phi' = a \phi + \epsilon f(\phi), \qquad a = \sqrt{1 - c \epsilon^2}$$

The branch f is a chain of parts that ends in a random matrix, so that given phi its outputs are independent over
neurons and N(0, Qhat). One matrix is the network of Kawase and Ota (arXiv 2604.15742), f = W s(phi) + b with c = 0; c =
1 and eps = 1 is the plain network phi' = f(phi).
"""

from collections.abc import Sequence
from typing import cast

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from .activations import Activation
from .activations.base import array
from .branch import Part, Section, check_branch, in_sections, kernel_maps
from .checks import (
    check_features,
    check_kernel,
    check_shape,
    check_symmetric,
    check_unstacked,
    is_concrete,
)
from .fields import parameter
from .kernel_maps import (
    Dense,
    KernelMap,
    Local,
    Response,
    apply_all,
    carry_all,
    mean_variance,
    variance_leaf,
)
from .linear import matmul
from .pairs import pack, pack_covariance, unpack
from .showing import shown_fields


class Model(eqx.Module):
    r"""A residual network at initialisation, its width and depth left open:
    $\phi' = \sqrt{1 - c \epsilon^2}\, \phi + \epsilon f(\phi)$.

    `branch` is an activation, which stands for one matrix behind it, of variances C_W (times the number of features)
    and C_b; or the parts of f, read in the order in which data flows:

        Model(Tanh(), C_W=2.0, C_b=0.1)
        Model(Tanh(), C_W=1.0, decay=1.0)
        Model([Dense(1.0), GELU(), Dense(2.0)])
        Model([Tanh(), Dense(1.5), GELU(), Dense(2.0)])
        Model([RMSNorm(), Dense(1.0, ratio=4), GELU(), Dense(2.0)])
        Model([RMSNorm(), Dense(1.0, ratio=2), GLU(SiLU()), Dense(4.0)])

    These are: one matrix, as in the paper; a plain network, phi' = W tanh(phi) at eps = 1; two matrices; full
    pre-activation, as in ResNet v2; the MLP block of a transformer; the same with gates, as in Llama.

    Symbols: [glossary](../glossary.md).

    A Dense that feeds no activation has linear units. `decay` is c: the stream is multiplied by
    $a = \sqrt{1 - c \epsilon^2}$. Variances, decay and the parameters of activations are array leaves: gradients reach
    them, and changing them does not recompile. Raises ValueError, with the remedy, for parts that make no block.
    """

    branch: tuple[Part, ...]
    # Its unit is the decay that balances what a layer adds.
    decay: Float[Array, ""] = eqx.field(
        metadata=parameter(unit=lambda model, k: mean_variance(model.q(k)) / mean_variance(k))
    )

    def __init__(
        self,
        branch: Activation | Sequence[Part],
        C_W: Float[ArrayLike, ""] | None = None,
        C_b: Float[ArrayLike, ""] | None = None,
        *,
        decay: Float[ArrayLike, ""] = 0.0,
    ):
        if isinstance(branch, Activation):
            if C_W is None:
                raise ValueError("Argument `C_W` is missing: the variance of the matrix behind the activation.")
            self.branch = branch, Dense(C_W, 0.0 if C_b is None else C_b)
        else:
            self.branch = check_branch(branch)
            if C_W is not None or C_b is not None:
                raise ValueError(
                    "Arguments `C_W` and `C_b` go with a single activation. In a list of parts the matrices hold them: "
                    "end it in Dense(C_W, C_b)."
                )
        self.decay = array("decay")(decay)
        if self.decay.shape != () or (is_concrete(self.decay) and not np.isfinite(self.decay)):
            raise ValueError(f"Argument `decay` must be one finite number, but is {decay}.")

    def __repr__(self) -> str:
        return shown_fields(self)

    @property
    def C_W(self) -> Float[Array, ""]:
        """Variance of the last matrix, times the number of features that it reads."""
        return self.last.C_W

    @property
    def C_b(self) -> Float[Array, ""]:
        """Variance of the last biases."""
        return self.last.C_b

    @property
    def one_matrix(self) -> bool:
        """Whether the branch is an activation and one matrix behind it."""
        return len(self.branch) == 2 and isinstance(self.branch[0], Activation)

    @property
    def activation(self) -> Activation:
        """The activation of a block of one matrix; other blocks raise AttributeError."""
        if self.one_matrix:
            return cast(Activation, self.branch[0])
        raise AttributeError("A branch of several parts has no single activation: see `branch`.")

    @property
    def read(self) -> Activation:
        """The function s whose average over the stream the branch depends on, (1/n) sum_i s(phi_i) s(phi_i): Linear
        where the branch begins with a matrix or a norm."""
        neurons = self.sections[0].neurons
        assert isinstance(neurons, Activation)
        return neurons

    @property
    def sections(self) -> tuple[Section, ...]:
        """The branch matrix by matrix."""
        return in_sections(self.branch)

    @property
    def maps(self) -> tuple[KernelMap, ...]:
        """The maps of kernels that lead from E[s s], s = `read`, to Q; all maps but the last lead to the kernel S,
        which the last matrix reads."""
        return kernel_maps(self.sections)

    def Q(self, K: Float[ArrayLike, "N N"]) -> Float[Array, "N N"]:
        r"""Covariance of the next increment at infinite width; $C_b + C_W E[s(\phi_a) s(\phi_b)]$ for one matrix.

        Raises FloatingPointError, outside jit, where it is not finite.
        """
        K = self._check(K)
        return _finite("Q", _Q(self, K), K)

    def chi(self, K: Float[ArrayLike, "N N"], h: Float[ArrayLike, "N N"]) -> Float[Array, "N N"]:
        r"""First derivative of Q at K along the symmetric matrix h; for one matrix

        $$(\chi h)_{ab} =
          C_W \left( E[s'_a s'_b] h_{ab} + \tfrac12 E[s''_a s_b] h_{aa} + \tfrac12 E[s_a s''_b] h_{bb} \right)$$

        At an input of zero norm the derivative of a kinked activation by the variance of this input is infinite and is
        left out. Raises FloatingPointError, outside jit, where the derivative is not finite.
        """
        K = self._check(K)
        h = check_shape(h, "h", K.shape)
        check_symmetric(h, "h")
        return _finite("chi h", _chi(self, K, h.astype(K.dtype)), K)

    def hess(self, K: Float[ArrayLike, "N N"], V: Float[ArrayLike, "N N N N"]) -> Float[Array, "N N"]:
        r"""Second derivative of Q at K contracted with a covariance V of kernels.

        $$(\mathrm{Hess}:V)_{ab} = \sum_{p, q} \frac{\partial^2 Q_{ab}}{\partial K_p\, \partial K_q} V_{pq},
          \qquad p, q \in \{aa, bb, ab\}$$

        V must be a covariance of kernels: at a repeated input it has no component that would separate the two copies.
        (For kinked activations the second derivative along such a component is infinite and is left out.) Raises
        FloatingPointError, outside jit, where the derivative is not finite.
        """
        K = self._check(K)
        V = check_shape(V, "V", K.shape * 2)
        check_symmetric(V, "V", (1, 0, 2, 3), (0, 1, 3, 2), (2, 3, 0, 1))
        return _finite("Hess:V", _hess(self, K, V.astype(K.dtype)), K)

    def _check(self, K):
        check_unstacked(self, "model")
        return check_kernel(K, "K", zeros=True)

    def q(self, k: Float[Array, " P"]) -> Float[Array, " P"]:
        """Q in pair space."""
        return self.kernels_along(k)[-1]

    def kernels_along(self, k: Float[Array, " P"]) -> list[Float[Array, " P"]]:
        """The kernel that each part of the branch reads, at infinite width: first k, the kernel of the stream; after
        the kernel that the last part reads comes Q."""
        kernels = [k]
        for part in self.branch:
            x = kernels[-1]
            kernels.append(part.value(x) if isinstance(part, KernelMap) else part.moments(x))
        return kernels

    def responses(self, k: Float[Array, " P"]) -> list[Response]:
        """The responses of all maps from the packed kernel k of the stream to Q, which is the value of the last
        response.

        The first response says how E[s s] moves with k, without the noise of the average over the stream.
        """
        first = Local(*self.read.expansion(k), jnp.zeros((), k.dtype))
        return [first, *self.responses_of_read(first.value)]

    def responses_of_read(self, x: Float[Array, " P"]) -> list[Response]:
        """The responses of all maps from E[s s] = x to Q."""
        responses = []
        for kernel_map in self.maps:
            responses.append(kernel_map.response(x))
            x = responses[-1].value
        return responses

    def error(self, k: Float[Array, " P"]) -> Float[Array, ""]:
        """Estimated error of the Gaussian expectations at a packed kernel: of second moments relative to E[s^2], and of
        the fourth moments of hidden neurons relative to E[s^2]^2. The largest along the branch."""
        errors, x, before = [self.read.kernel_error(k)], k, self.read.moments
        for kernel_map in self.maps[:-1]:  # the last is a matrix, which has no error
            x = before(x)
            errors.append(kernel_map.error(x))
            before = kernel_map.value
        return jnp.max(jnp.stack(errors))

    def shrink(self, dt: Float[Array, "*layers"]) -> Float[Array, "*layers"]:
        """a^2 = 1 - c eps^2, by which a layer multiplies the kernel of the stream, dt = eps^2."""
        return 1 - self.decay.astype(dt.dtype) * dt

    @property
    def last(self) -> Dense:
        """The matrix that ends the branch: Qhat = C_b + C_W S, S the kernel that it reads."""
        last = self.branch[-1]
        assert isinstance(last, Dense)
        return last


def _finite(name, value, K):
    """The value of a kernel map, or of a derivative, at K. Raises FloatingPointError with the entry, outside jit, where
    the value is not finite."""
    if is_concrete((value, K)) and not np.isfinite(value).all():
        a, b = np.argwhere(~np.isfinite(np.asarray(value)))[0]
        if 0 in np.diagonal(np.asarray(K))[[a, b]]:
            why = (
                "A norm, or a second derivative of a kink, has no value at an input of zero norm: leave this input out."
            )
        else:
            why = (
                "The second moment of the activation must exist at this variance, as a number of this dtype: take a "
                "smaller kernel."
            )
        raise FloatingPointError(
            f"The kernel map is not finite: {name}[{a}, {b}] at K[{a}, {b}] = {float(K[a, b]):.6g} is "
            f"{float(value[a, b])}. {why}"
        )
    return value


@eqx.filter_jit
def _Q(model, K):
    return unpack(model.q(pack(K)))


@eqx.filter_jit
def _chi(model, K, h):
    return unpack(apply_all(model.responses(pack(K)), pack(h)))


@eqx.filter_jit
def _hess(model, K, V):
    packed = pack_covariance(V)
    packed = 0.5 * (packed + packed.T)
    responses = model.responses(pack(K))
    return unpack(2 * carry_all([r.without_noise() for r in responses], jnp.zeros_like(packed[0]), packed)[0])


def input_kernel(
    x: Float[ArrayLike, "N d"], C_W: Float[ArrayLike, ""] = 1.0, C_b: Float[ArrayLike, ""] = 0.0
) -> Float[Array, "N N"]:
    r"""Kernel of a random linear embedding of data, $K_{ab} = C_b + C_W\, x_a \cdot x_b / d$."""
    x = check_features(x)
    gram = matmul(x, x.T) / x.shape[1]
    return variance_leaf("C_b", C_b).astype(gram.dtype) + variance_leaf("C_W", C_W).astype(gram.dtype) * gram
