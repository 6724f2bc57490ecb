"""Commands of the command line, run in this process and in an empty directory."""

import importlib

import pytest
from matplotlib.figure import Figure

from kernel_eft_jax import cli


def run(command: str) -> int:
    return cli.main(command.split())


def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, and an empty file takes the place of each, because drawing takes half a second."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, stream, **options: None)


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """Commands draw in tests with the mark `drawn` only."""
    if request.node.get_closest_marker("drawn") is None:
        draw_nothing(monkeypatch)


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load = lambda command, cache: importlib.import_module(f"kernel_eft_jax.cli.commands.{command}")  # noqa: E731
    monkeypatch.setattr(cli, "load_command", load)
