"""`import kernel_eft_jax` loads nothing at first; the first use of a name loads what the mathematics needs."""

import subprocess
import sys

import pytest

import kernel_eft_jax as keft
from kernel_eft_jax import public


def run(script: str) -> None:
    subprocess.run([sys.executable, "-c", f"import sys\n{script}"], check=True)


def test_importing_loads_no_jax():
    """The command line imports the package before it has read its arguments."""
    run("import kernel_eft_jax\nassert not {'jax', 'numpy'} & sys.modules.keys()")


@pytest.mark.thorough
def test_the_names_load_what_they_need_only():
    """Each of these takes between a tenth and half a second, and few programs need it. A name that is missing loads
    nothing, and is missing."""
    slow = {"scipy.stats", "scipy.optimize", "xarray", "pandas", "matplotlib", "h5netcdf", "optax"}
    missing = "not hasattr(keft, 'solves') and not hasattr(keft, '__wrapped__')"
    run(f"import kernel_eft_jax as keft\nassert {missing}\nkeft.solve\nassert not {slow} & sys.modules.keys()")


@pytest.mark.thorough
def test_every_public_name_is_there():
    run(
        "from kernel_eft_jax import *\nassert solve and Model and conventions\n"
        "import kernel_eft_jax as keft\n"
        "assert keft.inference.parameter_names\n"
        "names = dir(keft)\n"
        "assert {'Model', 'solve', 'conventions'} <= set(names)\n"
        "assert all(getattr(keft, name) is not None for name in names)"
    )
    assert {"Model", "solve", "conventions"} <= set(keft.__all__)
    assert not {"public", "storage", "cli"} & set(keft.__all__)
    assert keft.solve is public.solve


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="module 'kernel_eft_jax' has no attribute 'solves'"):
        _ = keft.solves


@pytest.mark.thorough
def test_figures_need_no_import_of_their_own():
    run("import kernel_eft_jax as keft\nassert callable(keft.figures.plot_panels) and 'figures' in dir(keft)")


def test_the_version_is_that_of_the_installed_package():
    assert keft.__version__.count(".") == 2
