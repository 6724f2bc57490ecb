"""What does a layer ask of a GPU?  `python benchmarks/gpu_program.py [inputs width networks]`, on any machine, with or without one.

XLA compiles the ensemble's own program for an NVIDIA H100 that need not be there. Counted in the program it makes: kernels launched for each
layer, bytes that they read and write (each operand once for each kernel, no cache between kernels), and from `needed` in
`ensemble.py` the operations. With the peak rates of the card these are bounds on sample-layers a second, not measurements. How XLA would
tune matrix products on the card is left out, and so is what the host does: it reads each layer whether there is another one. Written to
results/gpu_program_h100.json too.

Needs `pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt`, in the version of the installed jaxlib.
"""

import json
import math
import os
import re
import sys
from pathlib import Path

os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
}

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from ensemble import DEPTH, EPS, MODEL, kernel, needed
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
NO_KERNEL = "parameter|constant|tuple|get-tuple-element|bitcast|while|conditional|call|after-all"


def program(inputs, width, networks, control):
    """Optimised HLO of one block of the ensemble on one H100."""
    topology = topologies.get_topology_desc("", "cuda", topology="1x1x1", target_config=H100)
    mesh = Mesh(np.array(topology.devices), ("networks",), axis_types=(AxisType.Auto,))
    problem = prepare(MODEL, kernel(inputs), width, DEPTH, EPS, BlockSampler(), [DEPTH // 2, DEPTH])
    problem, _ = add_theory(problem, MODEL, kernel(inputs), DEPTH, EPS, control)
    arrays, static = eqx.partition(problem, eqx.is_array)

    def block(arrays, key, blocks, number):
        return moments_of_blocks(eqx.combine(arrays, static), key, blocks, number, networks, 8, mesh)

    def described(x, *axes):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    arguments = jax.tree.map(described, (arrays, jax.random.key(0)))
    blocks, number = described(jnp.zeros(1, jnp.uint32), "networks"), described(jnp.uint32(0))
    lowered = jax.jit(block).trace(*arguments, blocks, number).lower(lowering_platforms=("cuda",))
    return lowered.compile().as_text()


def size(shape):
    """Bytes of an HLO shape."""
    return sum(
        SIZES[t] * math.prod(int(d) for d in dims.split(",") if d)
        for t, dims in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    )


def kernels(text):
    """Name, bytes read and bytes written of each kernel of the innermost loop, branches included."""
    computations = {b.split(" ", 1)[0].lstrip("%"): b for b in re.split(r"\n\n", text) if b.startswith("%")}
    bodies = re.findall(r" while\(.*?body=%([\w.\-]+)", text)
    inner = [
        b for b in bodies if " while(" not in computations[b] and "threefry" not in computations[b].split("\n", 1)[0]
    ]
    body = max(inner, key=lambda name: len(computations[name]))

    def listed(name):
        lines = re.findall(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([\w\-]+)\((.*?)\)(.*)$", computations[name], re.M)
        shapes = {name: shape for name, shape, *_ in lines}
        for name, shape, operation, operands, rest in lines:
            if operation == "conditional":
                branches = re.findall(r"(?:true|false)_computation=%([\w.\-]+)", rest)
                yield from max(([*listed(branch)] for branch in branches), key=lambda found: sum(x[1] for x in found))
            elif not re.fullmatch(NO_KERNEL, operation):
                yield name, sum(size(shapes[o]) for o in re.findall(r"%([\w.\-]+)", operands)), size(shape)

    return list(listed(body))


def main():
    inputs, width, networks = (int(x) for x in sys.argv[1:] or (4, 64, 131072))
    rows = []
    for route in ("block law", "block law, control"):
        found = kernels(program(inputs, width, networks, route.endswith("control")))
        moved = sum(read + written for _, read, written in found) / networks
        operations = needed(inputs, width, route)["operations"]
        nanoseconds = {"bytes": moved / BYTES * 1e9, "operations": operations / OPERATIONS * 1e9}
        rows.append(
            {
                "inputs": inputs, "width": width, "block": networks, "route": route, "kernels_per_layer": len(found),
                "bytes": moved, "operations": operations, "least_nanoseconds": nanoseconds,
                "kernels": [{"name": name, "read": read, "written": written} for name, read, written in found],
            }
        )  # fmt: skip
        print(f"\n{inputs} inputs, width {width}, blocks of {networks}, {route}")
        for name, read, written in found:
            print(f"  {name:32} reads {read / networks:8.1f}  writes {written / networks:8.1f} bytes a network")
        print(
            f"  {len(found)} kernels a layer; {moved:.0f} bytes and {operations} operations a sample-layer, for which an H100 takes at least "
            f"{nanoseconds['bytes']:.2f} and {nanoseconds['operations']:.2f} ns: {1e3 / max(nanoseconds.values()):.0f} M/s at most"
        )
    path = Path(__file__).parent / "results" / "gpu_program_h100.json"
    path.write_text(json.dumps({"jax": jax.__version__, "measured": False, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
