"""What does a layer ask of a GPU? `python benchmarks/gpu_program.py [inputs width networks]`, on any machine, with or
without one.

XLA compiles the ensemble's own program for an NVIDIA H100 that need not be there. Counted in the program it makes:
kernels launched for each layer, bytes that they read and write (each operand once for each kernel, no cache between
kernels), and from `needed` in `ensemble.py` the operations. A layer in which some network of the block has a doubtful
pivot (`features_factor`) launches more kernels, counted apart. Beside it the kernel of `gpu_kernel.py`, which keeps all
layers on the chip: its bytes, shared out over the layers, and the instructions of its loop over layers, of any kind, in
the language of NVIDIA's assembler. With the peak rates of the card these are bounds on sample-layers a second, not
measurements. How XLA would tune matrix products on the card is left out, and so is what the host does: it reads each
layer whether there is another one. Written to results/gpu_program_h100.json too.

Needs `pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt`, in the version of the installed jaxlib; and, for the
registers of the kernel, `pip install --no-deps nvidia-cuda-nvcc-cu12`.
"""

import json
import math
import os
import re
import site
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "XLA_FLAGS": f"--xla_gpu_autotune_level=0 --xla_dump_to={(DUMP := tempfile.TemporaryDirectory()).name}",
}

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from ensemble import DEPTH, EPS, MODEL, kernel, needed
from gpu_kernel import layers_of_some, on_chip
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kernel_eft_jax.ensemble.estimate import add_theory, prepare
from kernel_eft_jax.ensemble.samplers import BlockSampler
from kernel_eft_jax.ensemble.simulate import moments_of_blocks

# As the makers of XLA describe the card (openxla/xla, h100_sxm.txtpb).
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
BYTES, OPERATIONS = (
    3.35e12,
    132 * 128 * 1.98e9,
)  # a second: memory, and instructions that all cores can issue, of any kind
SIZES = {"pred": 1, "s32": 4, "u32": 4, "f32": 4, "c64": 8, "s64": 8, "u64": 8, "f64": 8}
NO_KERNEL = "parameter|constant|tuple|get-tuple-element|bitcast|call|after-all"


def described(problem, networks):
    """Arrays that a program takes, by shape, on one H100: the problem's, the key and the networks or blocks; and the
    mesh of that card."""
    topology = topologies.get_topology_desc("", "cuda", topology="1x1x1", target_config=H100)
    mesh = Mesh(np.array(topology.devices), ("networks",), axis_types=(AxisType.Auto,))

    def shape(x, *axes):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    return *jax.tree.map(shape, (problem, jax.random.key(0))), shape(jnp.zeros(networks, jnp.uint32), "networks"), mesh


def prepared(inputs, width, control):
    """The problem, as arrays and what is static."""
    problem = prepare(MODEL, kernel(inputs), width, DEPTH, EPS, BlockSampler(), [DEPTH // 2, DEPTH])
    return eqx.partition(add_theory(problem, MODEL, kernel(inputs), DEPTH, EPS, control)[0], eqx.is_array)


def compiled(function, *arguments):
    """Optimised HLO of a function for the card that its arguments lie on."""
    (mesh,) = {x.sharding.mesh for x in jax.tree.leaves(arguments)}
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # Pallas asks it for the kind of card
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).compile().as_text()


def program(inputs, width, networks, control):
    """Optimised HLO of one block of the ensemble on one H100."""
    problem, static = prepared(inputs, width, control)
    arrays, key, blocks, mesh = described(problem, 1)

    def block(arrays, key, blocks):
        all_networks = jnp.uint32(networks)
        return moments_of_blocks(eqx.combine(arrays, static), key, blocks, all_networks, networks, 8, mesh)

    return compiled(block, arrays, key, blocks)


def chip(inputs, width, networks, control):
    """Of the kernel that keeps all layers on the chip: bytes in all, instructions of a layer and network, and what
    `ptxas` says of registers."""
    problem, static = prepared(inputs, width, control)
    *arguments, _ = described(problem, networks)
    text = compiled(lambda arrays, *rest: on_chip(eqx.combine(arrays, static), *rest), *arguments)
    shapes = dict(re.findall(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*?) [\w\-]+\(", text, re.M))
    written, operands = re.search(r"= (.*?) custom-call\((.*?)\)", text).groups()
    moved = size(written) + sum(size(shapes[o]) for o in re.findall(r"%([\w.\-]+)", operands))
    newest = max(
        Path(DUMP.name).glob("*.ptx"), key=lambda p: (layers_of_some.__name__ in p.read_text(), p.stat().st_mtime)
    )
    lines, labels, inner = newest.read_text().splitlines(), {}, []
    for i, line in enumerate(lines):  # the longest loop that has no loop inside: over layers
        labels |= dict.fromkeys(re.findall(r"^(\$\w+):", line), i)
        for label in re.findall(r"\bbra\S*\s+(\$\w+);", line):
            body = lines[labels.get(label, i) : i]
            if not any(set(re.findall(r"\bbra\S*\s+(\$\w+);", x)) & labels.keys() for x in body):
                inner = max(inner, [x for x in body if re.match(r"\t[^.].*;", x)], key=len)
    together = max(1, 512 // width)
    return moved, len(inner) * 64 / together, registers(newest)


def registers(ptx):
    """Registers of a thread, and bytes of them that are kept in memory, if NVIDIA's assembler is installed."""
    found = [p for place in site.getsitepackages() for p in Path(place).glob("nvidia/cuda_nvcc/bin/ptxas")]
    if not found:
        return None
    command = [found[0], "-v", "-arch=sm_90a", ptx, "-o", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "registers": int(re.search(r"Used (\d+) registers", said)[1]),
        "spilled_bytes": int(re.search(r"(\d+) bytes spill stores", said)[1]),
    }


def size(shape):
    """Bytes of an HLO shape."""
    return sum(
        SIZES[t] * math.prod(int(d) for d in dims.split(",") if d)
        for t, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    )


def kernels(text):
    """Of each kernel of the innermost loop: name, bytes read, bytes written, and whether only a layer with a doubtful
    pivot launches it."""
    computations = {b.split(" ", 1)[0].lstrip("%"): b for b in re.split(r"\n\n", text) if b.startswith("%")}
    bodies = re.findall(r" while\(.*?body=%([\w.\-]+)", text)
    outer = {b for b in bodies if re.search(r" while\(", computations[b]) and "doubtful" not in computations[b]}
    inner = [b for b in bodies if b not in outer and "threefry" not in computations[b].split("\n", 1)[0]]
    body = max(inner, key=lambda name: len(computations[name]))

    def listed(name, rare):
        lines = re.findall(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([\w\-]+)\((.*?)\)(.*)$", computations[name], re.M)
        shapes = {name: shape for name, shape, *_ in lines}
        for name, shape, operation, operands, rest in lines:
            if operation == "conditional":
                found = [
                    [*listed(b, rare or "/doubtful/" in rest)]
                    for b in re.findall(r"(?:true|false)_computation=%([\w.\-]+)", rest)
                ]
                yield from max(found, key=lambda branch: sum(x[1] for x in branch))
            elif operation == "while":  # counted once: a loop over inputs, in the rare branch
                yield from listed(re.search(r"body=%([\w.\-]+)", rest)[1], rare)
            elif not re.fullmatch(NO_KERNEL, operation):
                yield name, sum(size(shapes[o]) for o in re.findall(r"%([\w.\-]+)", operands)), size(shape), rare

    return list(listed(body, False))


def main():
    inputs, width, networks = (int(x) for x in sys.argv[1:] or (4, 64, 131072))
    rows = []
    for route in ("block law", "block law, control"):
        control, needs = route.endswith("control"), needed(inputs, width, route)["operations"]
        found = kernels(program(inputs, width, networks, control))
        usual, more = ([x for x in found if x[3] is rare] for rare in (False, True))
        moved, moved_more = (sum(read + written for _, read, written, _ in x) / networks for x in (usual, more))
        lines = [
            f"{name:32} reads {read / networks:8.1f}  writes {written / networks:8.1f} bytes a "
            f"network{', where doubtful' if rare else ''}"
            for name, read, written, rare in found
        ]
        rows.append(
            row(inputs, width, networks, route, len(usual), moved, needs)
            | {"more_where_doubtful": {"kernels_per_layer": len(more), "bytes": moved_more}, "kernels": lines}
        )
        print(*(f"  {line}" for line in lines), sep="\n")
        print(f"  where some network has a doubtful pivot {len(more)} kernels and {moved_more:.0f} bytes more")
        moved, instructions, used = chip(inputs, width, networks, control)
        rows.append(
            row(inputs, width, networks, f"{route}, on the chip", 1 / DEPTH, moved / networks / DEPTH, instructions)
            | {"layers": DEPTH, "of_a_thread": used}
        )
        print(f"  registers of a thread: {used}")
    path = Path(__file__).parent / "results" / "gpu_program_h100.json"
    path.write_text(json.dumps({"jax": jax.__version__, "measured": False, "rows": rows}, indent=1) + "\n")


def row(inputs, width, networks, route, count, moved, operations):
    """Kernels, bytes and operations of a sample-layer, and the least time for them; printed too."""
    nanoseconds = {"bytes": moved / BYTES * 1e9, "operations": operations / OPERATIONS * 1e9}
    print(
        f"\n{inputs} inputs, width {width}, blocks of {networks}, {route}\n  {count:.4g} kernels a layer; {moved:.4g} "
        f"bytes and {operations:.0f} operations a sample-layer, for which an H100 takes at least "
        f"{nanoseconds['bytes']:.2f} and {nanoseconds['operations']:.2f} ns: {1e3 / max(nanoseconds.values()):.0f} "
        "M/s at most"
    )
    return {
        "inputs": inputs, "width": width, "block": networks, "route": route, "kernels_per_layer": count, "bytes": moved,
        "operations": operations, "least_nanoseconds": nanoseconds,
    }  # fmt: skip


if __name__ == "__main__":
    main()
