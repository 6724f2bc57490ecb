"""An activation whose moment is a closed form of one pair of inputs: one class with one method of one pair."""

from abc import abstractmethod

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..checks import is_concrete
from .accuracy import MeasuredActivation, closed_form_errors
from .base import Expansion


class PairActivation(MeasuredActivation):
    r"""The base of an activation of your own whose second moment you know in closed form.

    Give `__call__`, $s(x)$, and `moment`, $E[s(\phi_a) s(\phi_b)]$; JAX differentiates the moment. If differentiation
    loses digits (`error` measures how many), also give `gradient` in a stable form, and `hessian` if that is not
    enough. If s has kinks, also give `kinks`. When an object is made, its closed form is compared with quadrature:
    ValueError if both differ, because the form belongs to another function or because a kink is not named.
    """

    @abstractmethod
    def moment(self, k_aa: Float[Array, ""], k_bb: Float[Array, ""], k_ab: Float[Array, ""]) -> Float[Array, ""]:
        """E[s(phi_a) s(phi_b)] of one pair of inputs."""

    def gradient(self, k_aa: Float[Array, ""], k_bb: Float[Array, ""], k_ab: Float[Array, ""]) -> Float[Array, " 3"]:
        """Derivatives of `moment` by (k_aa, k_bb, k_ab)."""
        return jnp.stack(jax.grad(self.moment, (0, 1, 2))(k_aa, k_bb, k_ab))

    def hessian(self, k_aa: Float[Array, ""], k_bb: Float[Array, ""], k_ab: Float[Array, ""]) -> Float[Array, "3 3"]:
        """Derivatives of `gradient`, finite at every correlation."""
        return jnp.stack(jax.jacfwd(self.gradient, (0, 1, 2))(k_aa, k_bb, k_ab), axis=-1)

    def pair(self, k_aa, k_bb, k_ab):
        k = k_aa, k_bb, k_ab
        return Expansion(self.moment(*k), self.gradient(*k), self.hessian(*k))

    def errors(self, k):
        return closed_form_errors(self, k)

    def __check_init__(self):
        ours = type(self).__module__.startswith(__package__ or "")
        if ours or not is_concrete(self):
            return
        one = jax.ShapeDtypeStruct((), jnp.result_type(float))
        shape = getattr(jax.eval_shape(self.moment, one, one, one), "shape", None)
        if shape != ():
            raise ValueError(
                f"The `moment` of {type(self).__name__} must give one number for one pair of inputs, but gives shape "
                f"{shape}: write it for two variances and a covariance, each of them one number. `PairActivation` "
                "applies it to all pairs."
            )
        worst = float(np.max(closed_form_errors(self, jnp.asarray([0.5, 2.0])).total))
        if not worst < 1e-2:
            raise ValueError(
                f"The `moment` of {type(self).__name__} and its derivatives differ from those of the function itself "
                f"by {worst:.1g} of E[s^2]. Check the closed form; if the function has kinks, give the class a "
                "property `kinks` that names them."
            )
