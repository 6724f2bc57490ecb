"""The one door: every public function has its kernels, features, data, counts and keys checked here.

Lists, NumPy arrays, integers, booleans and half precision come in; floating-point arrays of float32 or wider go on.
Each error names the argument, what was wrong and what would be right. Only concrete values are looked at: under
`jax.jit` and other transformations shapes are checked and values are not.
"""

import inspect
from dataclasses import fields
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from .machine import LARGEST_COUNT

LEAST_NETWORKS = 16  # fewer networks do not show their scatter
SMALLEST_SAMPLED, LARGEST_SAMPLED = 1e-12, 1e12


def is_concrete(value: Any) -> bool:
    """Whether a value, or each number of a list or of a tree, can be looked at now: False under a JAX
    transformation."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value))


def check_array(value: Any, name: str) -> Float[Array, "..."]:
    """Real numbers as a floating-point array: integers and booleans in the default precision, half precision as
    float32.

    Half precision has three digits, too few for a covariance: it is a format to store numbers in, not to compute in.
    """
    if not isinstance(value, jax.Array):
        value = to_numpy(value, name) if is_concrete(value) else _rectangular(jnp, value, name)
    if value.dtype == np.longdouble:  # JAX has no wider numbers than float64
        value = value.astype(np.float64)
    if value.dtype.kind in "biu":  # before any product: small integers would wrap
        return jnp.asarray(value, dtype=float)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        remedy = "give its real part" if value.dtype.kind == "c" else "give numbers"
        raise ValueError(f"Argument `{name}` must be real numbers, but has dtype {value.dtype}: {remedy}.")
    return jnp.asarray(value, dtype=jnp.float32) if value.dtype.itemsize < 4 else jnp.asarray(value)


def _rectangular(library, value, name):
    """A value as an array of NumPy, or of JAX for a list that holds traced numbers."""
    try:
        return library.asarray(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"Argument `{name}` must be an array of numbers with rows of one length: {error}") from error


def check_shape(value: Any, name: str, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Real numbers of one shape as a floating-point array."""
    array = check_array(value, name)
    if array.shape != shape:
        raise ValueError(f"Argument `{name}` must have shape {shape}, but has shape {array.shape}.")
    return array


def check_symmetric(array: Float[Array, "..."], name: str, *swaps: tuple[int, ...]) -> None:
    """Check that a matrix, or an array under the `swaps` of its axes, is finite and symmetric to rounding."""
    if is_concrete(array):
        values = np.asarray(array, np.float64)
        _refuse_infinite(values, name)
        scaled = values / max(np.abs(values).max(), np.finfo(np.float64).tiny)
        for axes in swaps or ((1, 0),):
            _refuse_asymmetric(values, scaled, array.dtype, name, axes)


def _refuse_infinite(values, name):
    if not np.isfinite(values).all():
        place = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(
            f"Argument `{name}` must be finite, but entry [{', '.join(map(str, place))}] is {values[tuple(place)]}."
        )


def _refuse_asymmetric(values, scaled, dtype, name, axes=(1, 0)):
    """Refuse an array that changes with a swap of its axes, beyond rounding of its entries `scaled` to one."""
    gap = np.abs(scaled - scaled.transpose(axes))
    if gap.max() > _tolerance(len(values), dtype):
        here = tuple(map(int, np.unravel_index(gap.argmax(), gap.shape)))
        there = tuple(here[axis] for axis in axes)
        raise ValueError(
            f"Argument `{name}` must be symmetric, but entry {list(here)} is {values[here]} and {list(there)} is "
            f"{values[there]}."
        )


def _tolerance(size, dtype):
    return 32 * size * float(jnp.finfo(dtype).eps)


def to_numpy(value: Any, name: str) -> np.ndarray:
    """A concrete value as a NumPy array of numbers, its dtype kept."""
    if not is_concrete(value):
        raise TypeError(
            f"Argument `{name}` must be known, but is traced by jit, grad or vmap: call the function outside of these."
        )
    array = _rectangular(np, value, name)
    if np.ma.is_masked(value):
        raise ValueError(f"Argument `{name}` must be whole, but has masked entries: leave their rows out.")
    if array.dtype.kind in "OSUmM":
        raise ValueError(f"Argument `{name}` must be numbers, but is {value!r:.200}.")
    return array


def check_kernel(K: Any, name: str = "K0", zeros: bool = False) -> Float[Array, "N N"]:
    """K as a floating-point array, if it is a kernel: square, finite, symmetric, positive semi-definite, positive
    diagonal.

    Symmetry and sign are judged on the correlation matrix, so that no large variance hides what is wrong between small
    ones. With `zeros`, a variance may be zero if its whole row is zero.
    """
    values, K = K, check_array(K, name)
    if K.ndim != 2 or K.shape[0] != K.shape[1] or K.shape[0] == 0:
        raise ValueError(
            f"Argument `{name}` must be a square matrix (inputs, inputs), but has shape {K.shape}: the kernel of one "
            "input is [[2.0]], and that of features is input_kernel(x)."
        )
    if not is_concrete(values):
        return K
    values = np.asarray(values, dtype=np.float64)
    _refuse_infinite(values, name)
    variances = np.diagonal(values)
    if variances.min() < 0 or (variances.min() == 0 and not zeros):
        a = int(variances.argmin())
        raise ValueError(
            f"Argument `{name}` must have positive variances on its diagonal, but entry [{a}, {a}] is {variances[a]}. "
            "An input that is exactly zero has none: leave it out, or give the embedding a bias (C_b > 0 in "
            "input_kernel)."
        )
    deviations = np.sqrt(np.where(variances > 0, variances, 1.0))
    correlations = values / deviations[:, None] / deviations
    _refuse_asymmetric(values, correlations, K.dtype, name)
    _refuse_indefinite(values, correlations, K.dtype, name)
    return K


def _refuse_indefinite(values, correlations, dtype, name):
    """Refuse a matrix whose correlations have a negative eigenvalue, beyond rounding."""
    allowed = _tolerance(len(values), dtype)
    try:  # a twentieth of the time of the eigenvalues
        np.linalg.cholesky(correlations + allowed * np.eye(len(values)))
        return
    except np.linalg.LinAlgError:
        eigenvalues, vectors = np.linalg.eigh(correlations)
    if eigenvalues[0] < -allowed:
        a, b = sorted(np.argsort(-np.abs(vectors[:, 0]), stable=True)[:2])
        raise ValueError(
            f"Argument `{name}` must be positive semi-definite, but its smallest eigenvalue is {eigenvalues[0]:.6g} "
            f"in units of the variances: entries [{a}, {a}], [{b}, {b}] and [{a}, {b}] are {values[a, a]:.6g}, "
            f"{values[b, b]:.6g} and {values[a, b]:.6g}. No set of inputs has such a kernel: check that the "
            "off-diagonal entries are covariances, not correlations."
        )


def check_variances(k: Float[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
    """Variances as a floating-point array: none is negative."""
    k = check_array(k, "k")
    if is_concrete(k) and (np.asarray(k) < 0).any():
        raise ValueError(f"Argument `k` is a variance and must not be negative, but is {k}.")
    return k


def check_sampled(K0: Float[Array, "N N"]) -> None:
    """Check that networks with these variances can be sampled in float32, in which a run squares variances and their
    differences of order 1/n."""
    variances = np.diagonal(np.asarray(K0, np.float64))
    a = int(np.argmax(np.abs(np.log(variances))))
    if not SMALLEST_SAMPLED <= variances[a] <= LARGEST_SAMPLED:
        raise ValueError(
            f"Argument `K0` must have variances from {SMALLEST_SAMPLED:g} to {LARGEST_SAMPLED:g} to be sampled in "
            f"float32, but entry [{a}, {a}] is {variances[a]:g}: multiply the inputs by a number that brings them "
            "there."
        )


def check_features(x: Any, name: str = "x", axes: int | None = 2) -> Float[Array, "*batch N d"]:
    """Features or pre-activations as a floating-point array of finite numbers; `axes` None allows any number of axes
    from two on."""
    values, x = x, check_array(x, name)
    if x.ndim < 2 or x.ndim != (axes or x.ndim) or 0 in x.shape:
        flat = f": take {name}.reshape(len({name}), -1)" if axes is not None and x.ndim > axes else ""
        remedy = f": one input is {name}[None]" if x.ndim == 1 else flat
        raise ValueError(f"Argument `{name}` must have shape (inputs, features), but has shape {x.shape}{remedy}.")
    if is_concrete(values):
        _refuse_infinite(np.asarray(values, dtype=x.dtype), name)
    return x


def check_positive(value: Any, name: str) -> None:
    """Check that a number is finite and greater than zero."""
    if is_concrete(value) and not _is_positive_number(value):
        value = np.asarray(value).tolist() if isinstance(value, jax.Array) else value
        raise ValueError(f"Argument `{name}` must be a finite number greater than zero, but is {value!r:.200}.")


def check_count(value: Any, name: str, least: int = 1) -> int:
    """A whole number from `least` to LARGEST_COUNT as a Python integer. NumPy's and JAX's integers are whole numbers
    too, and so is 1e3."""
    number = value if isinstance(value, int) else _whole(value)
    if number is None or isinstance(value, bool) or not least <= number <= LARGEST_COUNT:
        above = f" and {LARGEST_COUNT} at most" if number is not None and number > LARGEST_COUNT else ""
        raise ValueError(f"Argument `{name}` must be a whole number, {least} or more{above}, but is {value!r:.200}.")
    return number


def check_layers(layers: Any, name: str = "layers", depth: int = LARGEST_COUNT) -> tuple[int, ...]:
    """Whole layers in increasing order, from 0 to `depth` at most; one number is a list of one."""
    array = np.atleast_1d(to_numpy(layers, name))
    law = f"Argument `{name}` must be a list of whole layer numbers in increasing order"
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iuf" or (array != np.round(array)).any():
        raise ValueError(f"{law}, but is {layers!r:.200}.")
    if array.min() < 0 or array.max() > depth:
        above = f"be {LARGEST_COUNT:,} or less" if array.max() > depth else "be 0 or more"
        law = f"lie between 0 and the depth {depth}" if depth < LARGEST_COUNT else above
        raise ValueError(f"Argument `{name}` must {law}, but is {layers!r:.200}.")
    if (np.diff(array.astype(np.int64)) <= 0).any():
        raise ValueError(f"{law}, but is {layers!r:.200}.")
    return tuple(array.astype(np.int64).tolist())


def check_key(key: Any) -> Any:
    """One key of `jax.random`, typed or raw."""
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    raw = isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32 and key.ndim == 1
    if not (typed and key.shape == ()) and not raw:
        remedy = "take one of them, or split one" if typed else "a seed becomes one by `jax.random.key(seed)`"
        raise ValueError(f"Argument `key` must be one key such as `jax.random.key(0)`, but is {key!r:.200}: {remedy}.")
    return key


def check_kind(value: Any, kind: type, name: str) -> None:
    """Check that an argument is an object of the right class, and no stack of such objects."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIO" else "a"
        made = written(value, kind)
        made = ": unpack a stack of `recipes` by `**`" if isinstance(value, dict) and name in value else made
        raise ValueError(f"Argument `{name}` must be {article} {kind.__name__} object, but is {value!r:.200}{made}.")
    if isinstance(value, eqx.Module):
        check_unstacked(value, name)


def written(value: Any, *kinds: type) -> str:
    """The remedy for a class, or for its name, in place of an object of one of these kinds: the call that makes one."""
    classes = list(kinds)
    for cls in classes:
        classes += cls.__subclasses__()
    for cls in classes:
        named = isinstance(value, str) and value.lower() == cls.__name__.lower()
        if (cls is value or named) and not inspect.isabstract(cls):
            parameters = inspect.signature(cls).parameters.values()
            return f": write {cls.__name__}({', '.join(p.name for p in parameters if p.default is p.empty)})"
    return ""


def check_flag(value: Any, name: str) -> None:
    """Check that an argument is True or False: a text such as "no" would count as true."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"Argument `{name}` must be True or False, but is {value!r:.200}.")


def check_function(value: Any, name: str) -> None:
    """Check that an argument is an elementwise function of arrays that JAX can trace."""
    if not callable(value):
        raise ValueError(f"Argument `{name}` must be a function of an array, but is {value!r:.200}.")
    x = np.asarray([[-1.7, -0.4, 0.3], [0.9, 1.6, 2.3]], np.float32)
    try:
        eqx.filter_eval_shape(value, jnp.asarray(x))
        whole = value(jnp.asarray(x))
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise ValueError(
            f"Argument `{name}` must be a function of an array that JAX can trace, made of functions of jax.numpy "
            f"such as jnp.tanh, but fails with {reason:.200}"
        ) from error
    if getattr(whole, "shape", None) != x.shape:
        shape = getattr(whole, "shape", type(whole).__name__)
        raise ValueError(f"Argument `{name}` must be elementwise, but makes {shape} of an array of shape {x.shape}.")
    dtype = jnp.asarray(whole).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"Argument `{name}` must make floating-point numbers, but makes {dtype} of {x.dtype}.")
    if not is_concrete(whole):
        return
    each = [np.asarray(value(jnp.asarray(x[i : i + 1, j : j + 1]))) for i, j in np.ndindex(*x.shape)]
    if not np.allclose(np.asarray(whole), np.reshape(each, x.shape), rtol=1e-3, atol=1e-5, equal_nan=True):
        raise ValueError(
            f"Argument `{name}` must be elementwise, but what it makes of one entry depends on the others, as a "
            "softmax or a layer norm does. An activation acts on each neuron alone; divide inputs by their size with "
            "a map of kernels such as RMSNorm."
        )


ON_HOST = "it works on the host. What `solve` gives can be differentiated."  # a remedy of `check_untraced`


def check_untraced(work: str, remedy: str, *arguments: Any) -> None:
    """Check that nothing is traced: the function `work` runs on the host, where no transformation of JAX can follow."""
    if not is_concrete(arguments):
        raise TypeError(f"`{work}` cannot be traced by jit, grad or vmap: {remedy}")


def check_unstacked(module: eqx.Module, name: str) -> None:
    """Check that a field declared as one number holds one number: a stack of modules is called through
    `eqx.filter_vmap`.

    A stack would be broadcast against pairs of inputs, and give a wrong answer wherever there are as many modules as
    pairs.
    """
    for node in jax.tree.leaves(module, is_leaf=lambda x: x is not module and isinstance(x, eqx.Module)):
        if isinstance(node, eqx.Module):
            check_unstacked(node, name)
    for field in fields(module):
        leaf: Any = getattr(module, field.name, None)
        if getattr(field.type, "dim_str", None) == "" and eqx.is_array(leaf) and leaf.ndim:
            raise ValueError(
                f"Argument `{name}` is a stack: its {field.name} has shape {leaf.shape} and must be one number. Call "
                "the function for one of them at a time; `solve`, `Q`, `chi` and `hess` also go through "
                "`eqx.filter_vmap`."
            )


def _is_positive_number(value):
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):
        return False
    return array.ndim == 0 and array.dtype.kind in "iuf" and bool(np.isfinite(array) and array > 0)


def _whole(value):
    """A number without axes that is whole as a Python integer, or None."""
    if not isinstance(value, float | np.generic | np.ndarray | jax.Array) or not is_concrete(value):
        return None
    array = np.asarray(value)
    number = array.ndim == 0 and array.dtype.kind in "iuf" and np.isfinite(array)
    return int(array) if number and array == np.round(array) else None
