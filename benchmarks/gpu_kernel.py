r"""All layers of an ensemble in one GPU kernel, by Pallas: what stays on the chip need not be moved.

A program of the kernel takes a few networks from the inputs to the last depth. Pre-activations, free copies and their sums stay in registers;
random numbers are made where they are used, from the counters of `normals`; what leaves the chip is a column of sums for each network at
each saved depth. The law is that of `simulate` with `BlockSampler`, written down once more: arrays are (neurons, networks), one for each
input, and matrices of inputs are lists.

Nobody has run this on a GPU, and `estimate` does not use it: it is compiled for a GPU that is not there, counted (`gpu_program.py`), and held
against `simulate` on a CPU (tests/test_gpu_kernel.py), with which it agrees to float32 rounding. For one matrix behind an activation
without parameters, an even number of inputs and a width that is a power of two (a limit of Triton). A network with a pivot so small that
`features_factor` turns to the features is marked as doubtful, and belongs to `simulate`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from kernel_eft_jax.ensemble.factors import DOUBTFUL, gram
from kernel_eft_jax.ensemble.normals import network_keys, threefry, two_normals
from kernel_eft_jax.pairs import pair_count, pair_table, pairs

EPSILON = float(jnp.finfo(jnp.float32).eps)


def seen(state, path):
    """What the kernel writes of a network, by the plain route: a measure of `simulate`. G, S, F, and of free copies G, F, C_S, h and R."""
    columns = [gram(state.phi), state.read.S, gram(state.phi**2)]
    if state.control is not None:
        joint, alone = state.control
        columns += [gram(joint.phi), gram(joint.phi**2), joint.S, joint.h, joint.R]
        phi, *rest = alone
        columns += [jnp.mean(phi[:, 0] ** 2, axis=1), jnp.mean(phi[:, 0] ** 4, axis=1), *(x[:, 0] for x in rest)]
    return jnp.concatenate(columns)


def on_chip(problem, key, networks, interpret=False):
    """`simulate(problem, key, networks, seen)` in one kernel, (T, rows, networks), and which networks are doubtful.

    A program of the kernel is one warp, so that sums over neurons need no barrier, with eight neurons of each input in a thread.
    """
    (section,), inputs, width, size = problem.model.sections, len(problem.factor), problem.width, networks.size
    count, together = pair_count(inputs), max(1, 256 // width)
    plain = not section.norms and not jax.tree.leaves(section.neurons)
    if inputs % 2 or width & (width - 1) or size % together or not plain:
        raise ValueError(
            "The kernel takes an even number of inputs, a width that is a power of two, a multiple of "
            f"{together} networks, and one matrix behind an activation without parameters: take `simulate`."
        )
    dense, sums = section.dense, 3 * count
    tables = [problem.layers, problem.eps, problem.skip, problem.factor, dense.C_W[None], dense.C_b[None]]
    if problem.path is not None:
        path, ((L0, inverse),) = problem.path.joint, problem.path.factors
        tables += [path.S, path.responses[0].slope, L0, inverse]
        sums += 5 * (count + inputs)
    depths, some = problem.layers.size, pl.BlockSpec((together,), lambda i: (i,))
    found, doubtful = pl.pallas_call(
        partial(layers_of_some, section.neurons, (inputs, width, together), len(tables)),
        grid=(size // together,),
        in_specs=[*(pl.BlockSpec(x.shape, lambda i, rank=x.ndim: (0,) * rank) for x in tables), some, some],
        out_specs=[pl.BlockSpec((depths, sums, together), lambda i: (0, 0, i)), some],
        out_shape=[jax.ShapeDtypeStruct((depths, sums, size), jnp.float32), jax.ShapeDtypeStruct((size,), jnp.int32)],
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=1, num_stages=1),
    )(*tables, *network_keys(key, networks))
    return found, doubtful > 0


def layers_of_some(neurons, shape, count, *refs):
    """The kernel: some networks from the inputs to the last depth. `shape` is (inputs, neurons, networks)."""
    (saved, eps, skip, factor, C_W, C_b, *limits), (*keys, out, out_doubtful) = refs[:count], refs[count:]
    (inputs, width, together), table = shape, pair_table(shape[0])
    C_W, C_b, everyone = C_W[0], C_b[0], [(int(a), int(b)) for a, b in zip(*pairs(inputs), strict=True)]
    copies = (everyone, [(a, a) for a in range(inputs)]) if limits else ()

    words = tuple(jnp.broadcast_to(word[...][None], (width, together)) for word in keys)
    neuron = jax.lax.broadcasted_iota(jnp.uint32, (width, together), 0)

    def normals(layer):
        """The normals z of a layer, an array for each input."""
        layer = jnp.full((width, together), layer, jnp.uint32)
        drawn = [two_normals(*threefry(words, (layer, neuron + jnp.uint32(j * width)))) for j in range(inputs // 2)]
        return [z for half in zip(*drawn, strict=True) for z in half]

    def sums(some, x):
        """The kernel of x, of some pairs of inputs."""
        return [jnp.sum(x[a] * x[b], axis=0) / width for a, b in some]

    def spread(some, values):
        """Of each pair of inputs (a, b) the value of (a, b), in the order of the list; both orders for all pairs."""
        found = dict(zip(some, values, strict=True))
        return found | {(b, a): x for (a, b), x in found.items()}

    def read(layer, copy, phi, h):
        """C_S of a free copy."""
        values, S = spread(copy, h), sums(copy, [neurons(x) for x in phi])
        slope = [[limits[1][layer, int(table[a, b]), k] for k in range(3)] for a, b in copy]
        response = [
            j[0] * values[a, a] + j[1] * values[b, b] + j[2] * values[a, b]
            for j, (a, b) in zip(slope, copy, strict=True)
        ]
        return [x + y for x, y in zip(S, response, strict=True)]

    def step(layer, state):
        phi, S, doubtful, free = state
        step_eps, a = at(eps, layer), at(skip, layer)
        L, few = cholesky(spread(everyone, [C_b + C_W * x for x in S]), inputs)
        z, dt = normals((layer + 1).astype(jnp.uint32)), step_eps * step_eps * C_W

        def moved(x, rows):
            """x after an increment, by rows of a factor."""
            return [
                a * y + step_eps * total(row[j][None] * z[j] for j in sorted(row))
                for y, row in zip(x, rows, strict=True)
            ]

        def moved_free(copy, rows, phi, C_S, h, R):
            places = [int(table[pair]) for pair in copy]
            h = [a * a * x + dt * (y - limits[0][layer, p]) for x, y, p in zip(h, C_S, places, strict=True)]
            R = [a * a * x + dt * (S[p] - y) for x, y, p in zip(R, C_S, places, strict=True)]
            phi = moved(phi, rows)
            return phi, read(layer + 1, copy, phi, h), h, R

        if limits:
            L0, inverse = ([[x[layer, i, j] for j in range(i + 1)] for i in range(inputs)] for x in limits[2:])
            factors = turned(L0, inverse, L), directions(L0, L)
            free = [moved_free(c, rows, *state) for c, rows, state in zip(copies, factors, free, strict=True)]
        phi = moved(phi, L)
        return phi, sums(everyone, [neurons(x) for x in phi]), doubtful | few, free

    def save(place, state):
        layer, *state = state
        state = jax.lax.fori_loop(layer, saved[place], step, tuple(state))
        phi, S, _, free = state
        columns = [*sums(everyone, phi), *S, *sums(everyone, [x * x for x in phi])]
        for copy, (x, *rest) in zip(copies, free, strict=True):
            columns += [*sums(copy, x), *sums(copy, [y * y for y in x]), *(y for part in rest for y in part)]
        for row, column in enumerate(columns):
            out[place, row, :] = column
        return saved[place], *state

    z, zero = normals(jnp.uint32(0)), jnp.zeros((together,), jnp.float32)
    phi = [total(factor[a, b] * z[b] for b in range(a + 1)) for a in range(inputs)]
    S, nothing = sums(everyone, [neurons(x) for x in phi]), [[zero for _ in copy] for copy in copies]
    free = [(phi, read(0, copy, phi, h), h, h) for copy, h in zip(copies, nothing, strict=True)]
    first = jnp.int32(0), phi, S, zero > 0, free
    out_doubtful[...] = jax.lax.fori_loop(0, saved.shape[0], save, first)[3].astype(jnp.int32)


def at(ref, layer):
    """What a layer has of its own, or of all."""
    return ref[jnp.minimum(layer, ref.shape[0] - 1)]


def total(terms):
    """The sum of some arrays."""
    first, *rest = terms
    return sum(rest, first)


def cholesky(Q, inputs):
    """Rows {column: value} of the factor of Q[a, b], and whether a pivot is doubtful."""
    L, doubtful = [{} for _ in range(inputs)], False
    for j in range(inputs):
        column = [total([Q[i, j], *(-L[i][k] * L[j][k] for k in range(j))]) for i in range(j, inputs)]
        regular = column[0] > 10 * inputs * EPSILON * Q[j, j]
        scale = jnp.where(regular, 1 / jnp.sqrt(jnp.where(regular, column[0], 1.0)), 0.0)
        for i, x in enumerate(column, j):
            L[i][j] = x * scale
        doubtful = doubtful | (DOUBTFUL * EPSILON * Q[j, j] > L[j][j] * L[j][j])
    return L, doubtful


def directions(L0, L):
    """Rows of L, each as long as that of L0."""
    rows = []
    for a, (row0, row) in enumerate(zip(L0, L, strict=True)):
        squares = total(x * x for x in row.values())
        scale = jnp.where(squares > 0, 1 / jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
        length = jnp.sqrt(total(x * x for x in row0))
        own = jnp.where(squares > 0, 0.0, 1.0)
        rows.append({b: length * (x * scale + (own if a == b else 0.0)) for b, x in row.items()})
    return rows


def turned(L0, inverse, L):
    """L0 U, U = (1 - A)^-1 (1 + A) near to L0^-1 L, as in `factors`."""
    inputs, one = len(L), jnp.ones_like(L[0][0])
    left, right = ([[one if a == b else None for b in range(inputs)] for a in range(inputs)] for _ in range(2))
    for a in range(inputs):
        for b in range(a):
            M = total(inverse[a][k] * L[k][b] for k in range(b, a + 1))
            A = 0.25 * jnp.clip(M, -4.0, 4.0)
            left[a][b], left[b][a], right[a][b], right[b][a] = -A, A, A, -A
    for j in range(inputs):
        scale = 1 / left[j][j]
        column = [row[j] - (1.0 if a == j else 0.0) for a, row in enumerate(left)]
        left, right = (
            [[y - c * (scale * x[j][b]) for b, y in enumerate(row)] for row, c in zip(x, column, strict=True)]
            for x in (left, right)
        )
    return [{b: total(L0[a][k] * right[k][b] for k in range(a + 1)) for b in range(inputs)} for a in range(inputs)]
