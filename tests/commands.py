"""Commands of the command line, run in this process and in an empty directory."""

import importlib

import pytest

from kernel_eft_jax import cli


def run(command: str) -> int:
    return cli.main(command.split())


@pytest.fixture(autouse=True)
def in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    load = lambda command, cache: importlib.import_module(f"kernel_eft_jax.cli.commands.{command}")  # noqa: E731
    monkeypatch.setattr(cli, "load_command", load)
