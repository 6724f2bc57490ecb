"""Statistics of finite-width residual networks at initialisation: theory to order 1/n, ensembles, gradients.

The public names are those of `public.py`. They are loaded together when one of them is first used, so that the command
line can read its arguments before JAX is imported.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """Load all public names at the first use of one, or a module of this package, such as `figures`."""
    if name == "__version__":
        return importlib.metadata.version("kernel-eft-jax")
    if name == "__all__" or not name.startswith("_"):
        public = vars(importlib.import_module(".public", __name__))
        known = {name: value for name, value in public.items() if not name.startswith("_")}
        globals().update(known, __all__=sorted(known))
    if name not in globals():
        if name.isidentifier() and not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
            return importlib.import_module(f".{name}", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    return globals()[name]


def __dir__() -> list[str]:
    """The public names, and `figures`."""
    return sorted([*__getattr__("__all__"), "__version__", "figures"])
