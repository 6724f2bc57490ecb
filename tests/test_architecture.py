"""The house: a file imports only from lower floors, samplers know no expectation, importing has no side effects."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import kernel_eft_jax as keft

PACKAGE = Path(keft.__file__).parent
FLOORS = (
    {"machine", "linear", "selecting"},
    {"checks", "fields", "writing"},
    {"storage", "showing"},
    {"pairs", "quadrature", "directions", "cholesky", "compiling"},
    {"activations"},
    {"expectations", "depths"},
    {"kernel_maps"},
    {"branch"},
    {"model"},
    {"closures", "network", "conventions"},
    {"trajectory", "ensemble", "recipes"},
    {"diagnostics", "inference"},
    {"figures", "public"},
    {"studies"},
    {"cli"},
)
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room(path: Path) -> str:
    """A file of the package, or the folder that it lies in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    found = [i for i, rooms in enumerate(FLOORS) if name in rooms]
    assert found, f"`{name}` has no floor yet: give it one in {Path(__file__).name} and in CONTRIBUTING.md."
    return found[0]


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports from, wherever in the file."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            absolute = [alias.name.split(".") for alias in node.names]
            rooms |= {parts[1] for parts in absolute if parts[0] == PACKAGE.name and len(parts) > 1}
        elif isinstance(node, ast.ImportFrom):
            above = path.parents[node.level - 1].relative_to(PACKAGE).parts if node.level else ()
            module = [*above, *(node.module or "").split(".")] if node.level else (node.module or "").split(".")[1:]
            inside = node.level > 0 or (node.module or "").split(".")[0] == PACKAGE.name
            module = [part for part in module if part]
            if inside:
                rooms |= {module[0]} if module else {alias.name for alias in node.names}
    return rooms


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_imports_only_from_lower_floors(path):
    for name in imported_rooms(path) - {room(path)}:
        assert floor(name) < floor(room(path)), f"{path.name} must not import from {name}"


def test_every_import_is_seen():
    """The walk sees relative imports from files and folders, in both ways of writing them."""
    assert imported_rooms(PACKAGE / "model.py") >= {"activations", "pairs"}
    assert imported_rooms(PACKAGE / "closures" / "g_only.py") >= {"model", "pairs", "closures"}
    assert imported_rooms(PACKAGE / "cli" / "commands" / "paper.py") >= {"studies"}
    assert imported_rooms(PACKAGE / "cli" / "commands" / "theory.py") >= {"storage", "trajectory"}


LOOKED_UP = {"showing.py", "storage/results.py", "storage/values.py"}


def test_only_these_files_look_a_higher_floor_up_by_name():
    """These files look a higher floor up when they are called, not when they are imported: figures for `plot`, and the
    public classes that a file names."""
    found = {
        str(path.relative_to(PACKAGE)) for path in FILES if room(path) != "cli" and "import_module(" in path.read_text()
    }
    assert found == LOOKED_UP


class Unknown(keft.Activation):
    """An activation that can be applied, but whose expectations nobody knows."""

    def __call__(self, x):
        return jnp.tanh(x)

    def moments(self, k):
        raise AssertionError("a sampler asked for a Gaussian expectation")

    def pair(self, k_aa, k_bb, k_ab):
        raise AssertionError("a sampler asked for a Gaussian expectation")

    expansion = error = moments


@pytest.mark.parametrize("sampler", [keft.BlockSampler(), keft.WeightSampler()], ids=lambda s: type(s).__name__)
def test_samplers_never_ask_for_an_expectation(sampler, key):
    """Theory and sampling are each other's oracle, so the samplers must not know the theory."""
    assert not imported_rooms(PACKAGE / "ensemble" / "samplers.py") & {
        "quadrature",
        "activations",
        "closures",
        "trajectory",
    }
    model, K0 = keft.Model(Unknown(), 2.0), jnp.array([[1.0, 0.5], [0.5, 1.0]])
    G = keft.sample_kernels(model, K0, width=4, depth=3, eps=0.1, networks=2, key=key, sampler=sampler)
    assert jnp.isfinite(G).all()


def test_importing_has_no_side_effects():
    """No configuration is changed, float64 is not switched on, and no plotting library is loaded."""
    script = """
import os, sys, warnings
warnings.simplefilter("error")
import jax, diffrax, xarray
before, environment = dict(jax.config.values), dict(os.environ)
import kernel_eft_jax
assert dict(jax.config.values) == before, "jax.config"
assert dict(os.environ) == environment, "environment"
assert "matplotlib" not in sys.modules, "matplotlib"
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=PACKAGE.parent)


def test_public_names_are_explicit():
    """Every public name is documented; nothing is exported by accident."""
    for name in keft.__all__:
        value = getattr(keft, name)
        assert value.__doc__, name


BESIDE = [*(PACKAGE.parent / "benchmarks").glob("*.py"), *(PACKAGE.parent / "docs").glob("*.py")]


@pytest.mark.parametrize("path", BESIDE, ids=lambda path: path.name)
def test_programs_beside_the_package_import_names_that_exist(path):
    """No other test runs benchmarks and the programs that make the site: a name that moved would break them unseen."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE.name):
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{node.module}.{name.name}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "keft":
            assert hasattr(keft, node.attr), f"keft.{node.attr}"


def test_no_private_modules_of_jax():
    """No file imports private modules of JAX, which the next release may move."""
    for path in FILES:
        assert "jax._src" not in path.read_text(), path.name
    assert jax.__version__
