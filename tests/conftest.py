"""Settings that every test runs under: float64, strict dtypes, fixed random numbers, quick compilation."""

import os
import subprocess
import sys
import zlib
from collections.abc import Iterator

import jax
import pytest
from hypothesis import settings
from jaxtyping import Array

# Most of the time of these tests is compilation, and this halves it: less polished machine code for the same formulas, whose
# results differ by rounding. `make slow` compiles as users do, and so does XLA_FLAGS= before any command.
QUICK = ("--xla_backend_optimization_level=1", "--xla_cpu_use_fusion_emitters=false")


def accepted(flag: str) -> bool:
    """Whether the installed XLA has a flag; it ends the process at one that it does not know."""
    environment = os.environ | {"XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"}
    ask = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(ask, env=environment, capture_output=True).returncode == 0


if "XLA_FLAGS" not in os.environ:  # workers inherit what the first process found
    os.environ["XLA_FLAGS"] = " ".join(filter(accepted, QUICK))

jax.config.update("jax_enable_x64", True)
# Mixed dtypes are errors: a float32 ensemble must not turn into float64 half way, nor the other way round.
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Rank promotion stays allowed: diffrax would live without it, but a vector against the last axis of an array is what the
# formulas of this package say, and users' own activations run under the default.

# Examples follow from the test, not from the clock, and nothing is remembered between runs.
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("fixed")


@pytest.fixture
def key(request: pytest.FixtureRequest) -> Array:
    """A random key derived from the test's name: the same in every run, and independent of the order of tests."""
    return jax.random.key(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True, scope="module")
def forgotten_programs() -> Iterator[None]:
    """Compiled programs go with the file that needed them: all of them together are gigabytes."""
    yield
    jax.clear_caches()
