r"""All layers of an ensemble in one GPU kernel, by Pallas. `python benchmarks/gpu_kernel.py`, on a GPU, compares and
times it.

A program of the kernel takes a few networks from the inputs to the last depth. Pre-activations, free copies and their
sums stay in registers; random numbers are made where they are used, from the counters of `normals`; what leaves the
chip is a column of sums for each network at each saved depth. The law is that of `simulate` with `BlockSampler`,
written down once more: arrays are (neurons, networks), for each input on its own, and matrices of inputs are lists.

On an H100 it is four to five times as fast as `estimate` (results/gpu_kernel.json, results/ensemble_gpu.json), and it
agrees with `simulate` to float32 rounding there and, interpreted, on a CPU (tests/test_gpu_kernel.py). `estimate` does
not use it: with control variates it takes over a minute to compile, in which `estimate` does five million networks of
the published setting; and JAX has announced the end of the compiler it is written for (Triton behind Pallas).

For one matrix behind an activation without parameters, a few inputs, and a width that is a power of two (a limit of
Triton). A network with a pivot so small that `features_factor` turns to the features is marked as doubtful, and belongs
to `simulate`.
"""

import json
import platform
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from kernel_eft_jax.ensemble.estimate import add_theory, prepare
from kernel_eft_jax.ensemble.factors import DOUBTFUL, gram
from kernel_eft_jax.ensemble.normals import network_keys, threefry, two_normals
from kernel_eft_jax.ensemble.samplers import BlockSampler
from kernel_eft_jax.ensemble.simulate import simulate
from kernel_eft_jax.pairs import pair_count, pair_table

EPSILON = float(jnp.finfo(jnp.float32).eps)


def seen(state, path):
    """What the kernel writes of a network, by the plain route: a measure of `simulate`. G, S, F, and of free copies G,
    F, C_S, h and R."""
    columns = [gram(state.phi), state.read.S, gram(state.phi**2)]
    if state.control is not None:
        joint, alone = state.control
        columns += [gram(joint.phi), gram(joint.phi**2), joint.S, joint.h, joint.R]
        if alone is not None:
            phi, *rest = alone
            columns += [jnp.mean(phi[:, 0] ** 2, axis=1), jnp.mean(phi[:, 0] ** 4, axis=1), *(x[:, 0] for x in rest)]
    return jnp.concatenate(columns)


def on_chip(problem, key, networks, interpret=False):
    """`simulate(problem, key, networks, seen)` in one kernel, (T, rows, networks), and which networks are doubtful.

    A program of the kernel is two warps, with eight neurons of each input in a thread. On an H100 one warp is 6 %
    slower without control variates and as fast with them, and four warps are 7 % faster and 5 % slower.
    """
    (section, *more), inputs, width, size = problem.model.sections, len(problem.factor), problem.width, networks.size
    count, together = pair_count(inputs), max(1, 512 // width)
    plain = not more and not section.norms and not jax.tree.leaves(section.neurons)
    if width < 2 or width & (width - 1) or size % together or not plain:
        raise ValueError(
            f"The kernel takes a width that is a power of two, at least 2, a multiple of {together} networks, and one "
            "matrix behind an activation without parameters: take `simulate`."
        )
    dense, sums = section.dense, 3 * count
    tables = [problem.layers, problem.eps, problem.skip, problem.factor, dense.C_W[None], dense.C_b[None]]
    if problem.limits is not None:
        path, ((L0, inverse),) = problem.limits.joint, problem.limits.factors
        tables += [path.S, path.responses[0].gradient, L0, inverse]
        sums += 5 * (count + (inputs if inputs > 1 else 0))
    depths, some = problem.layers.size, pl.BlockSpec((together,), lambda i: (i,))
    found, doubtful = pl.pallas_call(
        partial(layers_of_some, section.neurons, (inputs, width, together), len(tables)),
        grid=(size // together,),
        in_specs=[*(pl.BlockSpec(x.shape, lambda i, rank=x.ndim: (0,) * rank) for x in tables), some, some],
        out_specs=[pl.BlockSpec((depths, sums, together), lambda i: (0, 0, i)), some],
        out_shape=[jax.ShapeDtypeStruct((depths, sums, size), jnp.float32), jax.ShapeDtypeStruct((size,), jnp.int32)],
        interpret=interpret,
        compiler_params=triton.CompilerParams(num_warps=2, num_stages=1),
    )(*tables, *network_keys(key, networks))
    return found, doubtful > 0


def layers_of_some(neurons, shape, count, *refs):
    """The kernel: some networks from the inputs to the last depth. `shape` is (inputs, neurons, networks)."""
    tables, (*keys, out, doubtful) = refs[:count], refs[count:]
    law = Law(neurons, shape, tables, [word[...] for word in keys])

    def save(place, state):
        layer, *state = state
        state = jax.lax.fori_loop(layer, law.saved[place], law.step, tuple(state))
        for row, column in enumerate(law.columns(*state)):
            out[place, row, :] = column
        return law.saved[place], *state

    doubtful[...] = jax.lax.fori_loop(0, law.saved.shape[0], save, (jnp.int32(0), *law.start()))[3].astype(jnp.int32)


class Law:
    """How a few networks move: the state is phi, their S, whether a pivot was doubtful, and phi, C_S, h and R of each
    free copy.

    Of each input there are two arrays (neurons, networks), for the first half of its neurons and for the other: a draw
    is the real part of a pair of normals for one half of an input, and the imaginary part for another. `copies` are the
    pairs of inputs that a free copy knows: that of all inputs all of them, that of each input alone the input itself.
    """

    def __init__(self, neurons, shape, tables, words):
        self.saved, self.eps, self.skip, self.factor, C_W, C_b, *self.limits = tables
        self.neurons, self.C_W, self.C_b = neurons, C_W[0], C_b[0]
        (self.inputs, self.width, self.networks), table = shape, pair_table(shape[0])
        self.place = {(a, b): int(table[a, b]) for a, b in np.ndindex(table.shape)}
        self.pairs = [pair for pair in self.place if pair[0] <= pair[1]]
        alone = [(a, a) for a in range(self.inputs)]
        self.copies = ([self.pairs, alone] if self.inputs > 1 else [self.pairs]) if self.limits else []
        half = self.width // 2, self.networks
        self.words = tuple(jnp.broadcast_to(word[None], half) for word in words)
        self.neuron = jax.lax.broadcasted_iota(jnp.uint32, half, 0)

    def normals(self, layer):
        """The normals z of a layer."""
        layer = jnp.full(self.neuron.shape, layer, jnp.uint32)
        counters = [(layer, self.neuron + jnp.uint32(half * self.width // 2)) for half in range(self.inputs)]
        drawn = [two_normals(*threefry(self.words, counter)) for counter in counters]
        real, imaginary = map(list, zip(*drawn, strict=True))
        halves = real + imaginary
        return [halves[2 * a : 2 * a + 2] for a in range(self.inputs)]

    def gram(self, known, x):
        """The kernel of x, of the pairs that are known."""
        return [jnp.sum(x[a][0] * x[b][0] + x[a][1] * x[b][1], axis=0) / self.width for a, b in known]

    def S(self, known, phi):
        """The kernel of the features."""
        return self.gram(known, jax.tree.map(self.neurons, phi))

    def C_S(self, layer, known, phi, h):
        """What a matrix reads of a free copy: its own S, and the response to h."""
        value, found = dict(zip(known, h, strict=True)), []
        for S, (a, b) in zip(self.S(known, phi), known, strict=True):
            J = [self.limits[1][layer, self.place[a, b], k] for k in range(3)]
            found.append(S + (J[0] * value[a, a] + J[1] * value[b, b] + J[2] * value[a, b]))
        return found

    def start(self):
        """Depth zero: the free neurons are the network's own, and nothing responds."""
        z, zero = self.normals(jnp.uint32(0)), jnp.zeros(self.networks, jnp.float32)
        phi = [[total(self.factor[a, b] * z[b][k] for b in range(a + 1)) for k in range(2)] for a in range(self.inputs)]
        nothing = [[zero for _ in known] for known in self.copies]
        free = [(phi, self.C_S(0, known, phi, h), h, h) for known, h in zip(self.copies, nothing, strict=True)]
        return phi, self.S(self.pairs, phi), zero > 0, free

    def step(self, layer, state):
        """One layer."""
        phi, S, doubtful, free = state
        L, more = cholesky(
            {(b, a): self.C_b + self.C_W * x for (a, b), x in zip(self.pairs, S, strict=True)}, self.inputs
        )
        eps, a, z = at(self.eps, layer), at(self.skip, layer), self.normals((layer + 1).astype(jnp.uint32))

        def moved(phi, rows):
            u = [[total(x[None] * z[b][k] for b, x in sorted(row.items())) for k in range(2)] for row in rows]
            return jax.tree.map(lambda x, y: a * x + eps * y, phi, u)

        def moved_free(known, rows, phi, C_S, h, R):
            places, dt = [self.place[pair] for pair in known], eps * eps * self.C_W
            pulls = [y - self.limits[0][layer, p] for y, p in zip(C_S, places, strict=True)]
            h = [a * a * x + dt * pull for x, pull in zip(h, pulls, strict=True)]
            R = [a * a * x + dt * (S[p] - y) for x, y, p in zip(R, C_S, places, strict=True)]
            phi = moved(phi, rows)
            return phi, self.C_S(layer + 1, known, phi, h), h, R

        if free:
            below = [[x[layer, i, j] for j in range(i + 1)] for x in self.limits[2:] for i in range(self.inputs)]
            L0, inverse = below[: self.inputs], below[self.inputs :]
            factors = (turned(L0, inverse, L), directions(L0, L))[: len(free)]
            free = [moved_free(*copy, *before) for *copy, before in zip(self.copies, factors, free, strict=True)]
        phi = moved(phi, L)
        return phi, self.S(self.pairs, phi), doubtful | more, free

    def columns(self, phi, S, doubtful, free):
        """What is written of each network, in the order of `seen`."""
        found = [*self.gram(self.pairs, phi), *S, *self.gram(self.pairs, jax.tree.map(jnp.square, phi))]
        for known, (x, *rest) in zip(self.copies, free, strict=True):
            found += [*self.gram(known, x), *self.gram(known, jax.tree.map(jnp.square, x)), *jax.tree.leaves(rest)]
        return found


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


def build(networks, interpret=False):
    """Both programs, compiled, with and without control variates, at four inputs of 64 neurons: for each the problem
    and, by name, the program and the seconds that it took to compile."""
    routes = {"on the chip": partial(on_chip, interpret=interpret), "simulate": partial(simulate, measure=seen)}
    built = {}
    for control in (False, True):
        problem = prepare(MODEL, kernel(4), 64, DEPTH, EPS, BlockSampler(), [DEPTH // 2, DEPTH])
        problem, _ = add_theory(problem, MODEL, kernel(4), DEPTH, EPS, control)
        programs = {}
        for name, route in routes.items():
            lowered, start = jax.jit(route).lower(problem, jax.random.key(0), networks), time.perf_counter()
            programs[name] = lowered.compile(), time.perf_counter() - start
        built[control] = problem, programs
    return built


def compare(built, networks):
    """How far the kernel is from `simulate`, and the rates of both: one row for each program."""
    key, rows = jax.random.key(0), []
    for control, (problem, programs) in built.items():
        (found, doubtful), expected = (program(problem, key, networks) for program, _ in programs.values())
        scale = jnp.max(jnp.abs(expected), axis=(0, 2))[:, None]
        error = float(jnp.max(jnp.where(doubtful, 0, jnp.abs(found - expected) / scale)))
        print(f"control {control}: {error:.1e} from simulate, {doubtful.sum()} of {networks.size} networks doubtful")
        for name, (program, seconds) in programs.items():
            call = partial(program, problem, key, networks)
            rate = repeat(lambda call=call: jax.block_until_ready(call()), networks.size * DEPTH, 1, 2.0)["rate"]
            print(f"  {name}: {rate / 1e6:.4g} million sample-layers a second, compiled in {seconds:.1f} s")
            rows.append({"control": control, "program": name, "rate": rate, "compile_s": seconds})
        rows[-2] |= {"error": error, "doubtful": int(doubtful.sum())}
    return rows


def main():
    on_gpu = jax.default_backend() == "gpu"
    networks = jnp.arange(2**17 if on_gpu else 2**6, dtype=jnp.uint32)
    write(compare(build(networks, interpret=not on_gpu), networks), networks.size)


def write(rows, networks):
    """Rows as JSON, if they were measured on a GPU."""
    device = jax.local_devices()[0]
    if device.platform == "gpu":
        machine = {"device": device.device_kind, "jax": jax.__version__, "python": platform.python_version()}
        found = {"unit": "sample-layers per second", "machine": machine, "networks": networks, "rows": rows}
        path = Path(__file__).parent / "results" / "gpu_kernel.json"
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    from ensemble import DEPTH, EPS, MODEL, kernel, repeat  # here, since the tests read this file without its folder

    main()
