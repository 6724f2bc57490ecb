"""Settings that every test runs under: float64, strict dtypes, fixed random numbers, quick compilation."""

import gc
import os
import random
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import pytest
from hypothesis import settings
from jaxtyping import Array, install_import_hook

# What signatures state of shapes, dtypes and types is checked at every call of these modules, in which arrays meet
# arrays. Left out are the doors of the package (model, network, trajectory, diagnostics, ensemble.estimate, fit,
# fisher, conventions, recipes): they take lists, integers and half precision, and answer what is wrong with sentences
# of their own, which the tests must see. Left out too are files, figures and the command line, where no formula is, and
# the observables, in which a jackknife makes a hundred thousand small calls.
CHECKED = (
    "checks depths fields linear pairs quadrature kernel_maps directions activations expectations closures "
    "ensemble.factors ensemble.normals ensemble.statistics ensemble.samplers ensemble.simulate "
    "ensemble.control_variates ensemble.processes ensemble.plan ensemble.run ensemble.result ensemble.checkpoint "
    "inference.parameters inference.data inference.likelihood inference.search inference.pathwise inference.sensitivity"
)
install_import_hook([f"kernel_eft_jax.{module}" for module in CHECKED.split()], "checker.typechecked")

# Compilation costs more than anything else here, and this halves it: less polished machine code for the same formulas,
# whose results differ by rounding. Not every release of XLA knows every flag. `make slow` compiles as users do, and so
# does XLA_FLAGS= before any command.
QUICK = (
    "--xla_backend_optimization_level=1",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)


def known_flags(flags: Sequence[str]) -> list[str]:
    """Those of the flags that the installed XLA knows; XLA ends the process at a flag that it does not know. All are tried
    together first, because most releases know them all."""
    ask = [sys.executable, "-c", "import jax; jax.devices()"]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

    def known(*flags: str) -> bool:
        environment = os.environ | {"XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
        return subprocess.call(ask, env=environment, **silent) == 0

    return list(flags) if known(*flags) else [flag for flag in flags if known(flag)]


if "XLA_FLAGS" not in os.environ:  # workers inherit what the first process found
    os.environ["XLA_FLAGS"] = " ".join(known_flags(QUICK))

# Programs are compiled once for all files, workers, processes and runs, small ones too: JAX forgets them at the end of
# a file.
CACHE = {
    "jax_compilation_cache_dir": str(Path(__file__).parent.parent / ".cache" / "jax"),
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    for name, value in CACHE.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)

jax.config.update("jax_enable_x64", True)
# Where each operation of a program was written stays out of the program: this is a twentieth of the time.
jax.config.update("jax_traceback_in_locations_limit", 0)
jax.config.update("jax_include_full_tracebacks_in_locations", False)
# Mixed dtypes are errors: a float32 ensemble must not turn into float64 half way, nor the other way round.
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Broadcasts are written out: a vector meets a matrix along the axis that the formula names, not along the one that is
# last.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Examples follow from the test, not from the clock, and nothing is remembered between runs.
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=25, database=None)
settings.load_profile("fixed")


def pytest_collection_finish() -> None:
    """Python looks for garbage after 200,000 new objects, not after 700, and not among what was there before the tests.

    Tracing makes millions of small objects: a seventh of the time of the tests went into looking for circles of them.
    """
    gc.freeze()
    gc.set_threshold(200_000, 20, 20)


@pytest.fixture
def key(request: pytest.FixtureRequest) -> Array:
    """A random key derived from the test's name: the same in every run, and independent of the order of tests."""
    return jax.random.key(zlib.crc32(request.node.nodeid.encode()))


@pytest.fixture(autouse=True)
def same_elements_checked(request: pytest.FixtureRequest) -> None:
    """beartype checks one element of a list or tuple, drawn by Python's own random numbers: the same one in every
    run."""
    random.seed(zlib.crc32(request.node.nodeid.encode()))


# The jackknife is judged by thousands of runs of one program; the rounding of closed forms that users see is judged by
# `make slow`, in larger tables.
OPTIMISED = ("statistics",)


@pytest.fixture(autouse=True, scope="module")
def programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Other files compile without any optimisation. Programs are dropped after each file of tests: all of them
    together would take gigabytes."""
    optimised = request.module.__name__.removeprefix("test_").startswith(OPTIMISED)
    quick = QUICK[0] in os.environ["XLA_FLAGS"] and not optimised
    jax.config.update("jax_disable_most_optimizations", quick)
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def programs_of_large_tables(request: pytest.FixtureRequest) -> Iterator[None]:
    """Programs of a slow test are dropped after the test. Linux grants a process 65,530 pieces of memory, of which a
    program takes hundreds: the large tables of one file need more, and XLA then ends the process."""
    yield
    if request.node.get_closest_marker("slow"):
        jax.clear_caches()
