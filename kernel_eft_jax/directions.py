"""Identity functions that raise a helpful TypeError when they are differentiated in an unsupported mode, or call a
check when they are differentiated in reverse mode.

In forward mode JAX pushes tangents through a linear program; in reverse mode JAX records the same program and
transposes it. So an identity on tangents that fails when it is run, and not when it is transposed, allows reverse mode
only. One that fails when it is transposed allows forward mode only.

Without these functions the errors of JAX speak of a custom_vjp function, or propose lax.scan, where the remedy is
another `adjoint`. Primitives are needed: `linear_call`, which is public, already runs its function while it is
recorded.
"""

import functools
from collections.abc import Callable

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import PyTree

from .checks import is_concrete


def reverse_only(x: PyTree, message: str) -> PyTree:
    """x; forward-mode differentiation through it raises TypeError with the message."""
    return jax.tree.map(functools.partial(_mark, _reverse_only, message), x)


def forward_only(x: PyTree, message: str) -> PyTree:
    """x; reverse-mode differentiation through it raises TypeError with the message."""
    return jax.tree.map(functools.partial(_mark, _forward_only, message), x)


def when_reversed(x: PyTree, check: Callable[[], None]) -> PyTree:
    """x; `check` is called before reverse-mode differentiation through it does any work."""
    return jax.tree.map(functools.partial(_noted, check), x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _noted(check, x):
    return x


@_noted.defjvp
def _noted_jvp(check, primals, tangents):
    # A known value with a recorded tangent means reverse mode outside jit. Inside jit nothing runs before the
    # transposition.
    known = is_concrete(primals[0])
    return _noted(check, primals[0]), _reversed.bind(tangents[0], message=(check, known))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _mark(primitive, message, x):
    return x


@_mark.defjvp
def _mark_jvp(primitive, message, primals, tangents):
    # The value is marked again, for derivatives of this derivative.
    return _mark(primitive, message, primals[0]), primitive.bind(tangents[0], message=message)


def _refuse(*_, message):
    raise TypeError(message)


def _primitive(name, run, batch, transpose, record=lambda aval, message: aval):
    primitive = Primitive(name)
    primitive.def_impl(run)
    primitive.def_abstract_eval(record)
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=False))
    batching.primitive_batchers[primitive] = lambda args, dims, message: (batch(*args, message=message), dims[0])
    ad.deflinear2(primitive, transpose)
    return primitive


def _pass(x, message):
    return x


_forward_only = _primitive(
    "forward_only",
    run=_pass,
    batch=lambda x, message: _forward_only.bind(x, message=message),
    transpose=lambda cotangent, x, message: _refuse(message=message),
)
# The cotangent is marked too: a gradient cannot be differentiated in reverse mode once more.
_reverse_only = _primitive(
    "reverse_only",
    run=_refuse,
    batch=_refuse,  # only tangents that are pushed forward are batched
    transpose=lambda cotangent, x, message: [_mark(_forward_only, message, cotangent)],
)


def _record(aval, message):
    check, known = message
    if known:
        check()
    return aval


def _transposed(cotangent, x, message):
    message[0]()
    return [cotangent]


_reversed = _primitive(
    "reversed",
    run=_pass,
    batch=lambda x, message: _reversed.bind(x, message=message),
    transpose=_transposed,
    record=_record,
)
