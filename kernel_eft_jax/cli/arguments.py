"""The command line: its commands and options, read without loading JAX, so that help and mistakes are answered at
once."""

import argparse
import importlib.metadata
from collections.abc import Sequence

from . import options, settings
from .outputs import check_outputs
from .parser import Help, Parser

BLOCK_HELP = """blocks, read as the data flow; a ratio is the width of the hidden layer over that of the stream:
  --block tanh,dense:2                               one matrix: the same as --activation tanh --C_W 2
  --block dense:1,gelu,dense:2:C_b=0.1               two matrices
  --block tanh,dense:1.5,gelu,dense:2                full pre-activation, ResNet v2
  --block rmsnorm,dense:1:ratio=4,gelu,dense:2       the MLP block of a transformer
  --block rmsnorm,dense:1:ratio=2,glu:silu,dense:4   gated, as in Llama
"""
EXAMPLES = {
    "theory": """examples:
  kernel-eft theory --activation gelu --C_W 2 --C_b 0.1
  kernel-eft theory --activation relu --eps 0.1 --depth 200 --out relu.nc
  kernel-eft theory --block rmsnorm,dense:1:ratio=4,gelu,dense:2 --K0 kernel.csv
""",
    "sample": """examples:
  kernel-eft sample --width 128 --depth 200 --eps 0.1 --networks 5000
  kernel-eft sample --activation relu --target K1 0.01 --checkpoint run.npz
""",
    "compare": """examples:
  kernel-eft theory --eps 0.1 --depth 200
  kernel-eft sample --eps 0.1 --depth 200
  kernel-eft compare theory.nc sample.nc
""",
    "fit": """examples:
  kernel-eft fit sample.nc
  kernel-eft fit kernels.npz --activation tanh --free C_W C_b --with-V4
""",
    "sensitivity": """examples:
  kernel-eft sensitivity --activation leaky-relu:slope=0.1
  kernel-eft sensitivity --T 1 --out slopes.npz --figure slopes.pdf
""",
    "validity": """examples:
  kernel-eft validity --activation relu --inputs 1 --diagonal 1 --depth 100 --eps 0.1
  kernel-eft validity --tolerance 0.02 --networks 4096 --out window.pdf
""",
    "network": """examples:
  kernel-eft network gpt2 --width 768 --depth 12
  kernel-eft network plain --width 256 --depth 16 --out plain.pdf
  kernel-eft network --block rmsnorm,dense:1:ratio=4,gelu,dense:2 --eps 0.2 --width 512 --depth 48
  kernel-eft network pre-norm --own kernels.npz
""",
    "paper": """examples:
  kernel-eft paper
  kernel-eft paper --all --out study
""",
}


def read(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command, checked as far as that is possible without the library; `files` holds the outputs."""
    words, parsers = list(words), {}
    top = parser(parsers)
    arguments = _parse(top, parsers, words)
    if arguments.settings is not None:
        first = words.index(arguments.command) + 1
        extra = settings.words(arguments.settings, arguments.command, parsers)
        # The last value of an option wins. The file is named once more to end a list of values, which would otherwise
        # take the words that follow.
        words[first:first] = [*extra, f"--settings={arguments.settings}"]
        arguments = _parse(top, parsers, words)
    _check_together(arguments)
    arguments.files = check_outputs(arguments)
    return arguments


def _parse(top, parsers, words):
    arguments, rest = top.parse_known_args(words)
    if rest:
        parsers[arguments.command].error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def parser(parsers: dict[str, Parser]) -> Parser:
    """The parser of the command line; those of its commands go into `parsers`."""
    top = Parser(
        prog="kernel-eft",
        description="Statistics of finite-width residual networks at initialisation: theory and sampled networks. "
        "G is the kernel of the activations, E[G] = K0 + K1 / n and Cov(G, G) = V4 / n at width n.",
        epilog="`kernel-eft network --help` shows the options of one command, with examples. Begin with `network`.",
    )
    version = importlib.metadata.version("kernel-eft-jax")
    top.add_argument("--version", action="version", version=f"kernel-eft {version}")
    commands = top.add_subparsers(required=True, metavar="command", dest="command", parser_class=Parser)
    for name, (add, summary) in COMMANDS.items():
        blocks = BLOCK_HELP if add in WITH_MODEL else ""
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog="\n".join(part for part in (EXAMPLES[name], blocks) if part),
            formatter_class=Help,
            allow_abbrev=False,
        )
        add(sub)
        options.common_options(sub)
        for action in sub.options().values():
            if action.metavar is None and action.choices is None:
                action.metavar = "FILE" if action.dest in ("out", "figure") else "NUMBER"
        parsers[name] = sub
    return top


COMMANDS = {
    "paper": (options.paper_options, "Repeat the main job of arXiv 2604.15742: figures, data, and a table beside it."),
    "theory": (options.theory_options, "Predict K0, V4 and K1, in the continuum or (with --eps) layer by layer."),
    "sample": (options.sample_options, "Sample networks: mean and covariance of their kernels, with standard errors."),
    "compare": (options.compare_options, "Compare a theory with sampled networks, in standard errors."),
    "fit": (
        options.fit_options,
        "Estimate hyperparameters from kernels of networks, your own or those of `kernel-eft sample`.",
    ),
    "sensitivity": (options.sensitivity_options, "Derivatives of K0, V4 and K1 by every parameter and input."),
    "network": (
        options.network_options,
        "How the activations of your network grow with depth, differ between seeds, and change with the width.",
    ),
    "validity": (
        options.validity_options,
        "Up to which depth each closure is accurate, and from which width the theory of order 1/n is.",
    ),
}
WITH_MODEL = (
    options.theory_options,
    options.sample_options,
    options.fit_options,
    options.sensitivity_options,
    options.validity_options,
    options.network_options,
)


def _check_together(arguments: argparse.Namespace) -> None:
    """Options that exclude or need each other."""

    def given(*names: str) -> list[str]:
        return ["--" + name.replace("off_d", "off-d") for name in names if getattr(arguments, name, None) is not None]

    if given("block") and given("activation", "C_W", "C_b"):
        raise ValueError(
            "Argument `--block` holds the activations and variances itself: leave out "
            f"{given('activation', 'C_W', 'C_b')[0]}."
        )
    if arguments.command == "network":
        own = given("block", "activation", "C_W", "C_b", "decay", "eps")
        if arguments.recipe and own:
            raise ValueError(
                f"The recipe {arguments.recipe} defines block and steps itself: leave out {own[0]}, or the recipe."
            )
        if not arguments.recipe and not given("block", "activation"):
            raise ValueError(
                f"Name a recipe ({', '.join(options.RECIPE_NAMES)}), or your block by `--block` with `--eps`."
            )
    if given("K0") and given("inputs", "diagonal", "off_diagonal"):
        raise ValueError(
            f"Argument `--K0` names the whole input kernel: leave out {given('inputs', 'diagonal', 'off_diagonal')[0]}."
        )
    if getattr(arguments, "closure", None) == "GOnly" and given("degree"):
        raise ValueError(
            "Argument `--degree` belongs to SigmaKernel and HermiteTower, but the closure is GOnly: leave out --degree."
        )
    if arguments.command in ("theory", "sensitivity"):
        if given("depth") and not given("eps"):
            raise ValueError("Argument `--depth` counts layers: give `--eps` too, or `--T` for the continuum.")
        if given("eps") and given("T"):
            raise ValueError("Argument `--eps` asks for layers, and `--T` for the continuum: leave out one of the two.")
        if given("eps") and not given("depth"):
            raise ValueError("Argument `--eps` asks for layers: give their number as `--depth`.")
    if arguments.command == "paper" and arguments.full and not arguments.all:
        raise ValueError("Argument `--full` goes with `--all`: the whole study at the published sizes.")
