"""The command line: which commands and options there are. Loads no JAX, so that help and mistakes are answered at
once."""

import argparse
import difflib
import importlib.metadata
import re
from collections.abc import Iterable, Sequence
from typing import NoReturn

from . import settings
from .outputs import FIGURES, check_outputs
from .values import number, one_of, path, positive, variance, whole

CLOSURES = ("HermiteTower", "SigmaKernel", "GOnly")
SAMPLERS = ("block", "weights")
RECIPES = ("gpt2", "pre-norm", "depth-mup", "ln-scaling", "umup", "resnet-v2", "plain")
BLOCKS = """blocks, read as the data flow; a ratio is the width of the hidden layer over that of the stream:
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
LARGEST = 2**31 - 1
DEEPEST = 1_000_000


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are ValueErrors of one sentence."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with which option, and what would be right."""
        message = re.sub(r"^argument (\S+?): must ", r"Argument `\1` must ", message)
        message = re.sub(r"^argument (\S+?): expected ", r"Argument `\1` expects ", message)
        message = re.sub(r"^argument (\S+?): ", r"Argument `\1`: ", message)
        choice = re.match(r"Argument `(\S+)`: invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            known = re.findall(r"[\w-]+", choice[3])
            message = (
                f"argument `{choice[1]}` must be one of {', '.join(known)}, but is "
                f"{choice[2]}{_close(choice[2], known)}"
            )
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown and unknown[1].startswith("-"):
            begin = [name for name in self.options() if name.startswith(unknown[1])]
            hint = f"; did you mean {begin[0]}?" if begin else _close(unknown[1], self.options())
            message = f"there is no option {unknown[1]}{hint}"
        elif unknown:
            message = (
                f"the word {unknown[1]} belongs to no option: write the values of one option without spaces, or in "
                "quotes"
            )
        if message == "the following arguments are required: command":
            message = f"name a command, one of {', '.join(COMMANDS)}: `kernel-eft --help` says what each does"
        raise ValueError(f"{message[0].upper()}{message[1:]}{'' if message.endswith('?') else '.'}")

    def options(self) -> dict[str, argparse.Action]:
        """The options by their names."""
        return {name: action for action in self._actions for name in action.option_strings if name.startswith("--")}


def _close(text: str, known: Iterable[str]) -> str:
    """The name that was probably meant, as the end of a sentence."""
    spelt = {re.sub(r"[-_]", "", name.lower()): name for name in known}
    close = difflib.get_close_matches(re.sub(r"[-_]", "", text.lower()), spelt, 1, 0.5)
    return f"; did you mean {spelt[close[0]]}?" if close else ""


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Defaults where there are any, and examples as they are written."""

    def _get_help_string(self, action):
        if isinstance(action.default, list):
            return f"{action.help} (default: {' '.join(action.default)})"
        return action.help if action.default in (None, False, True) else super()._get_help_string(action)


def read(words: Sequence[str]) -> argparse.Namespace:
    """The arguments of a command, checked as far as that is possible without the library; `files` holds the outputs."""
    words, parsers = list(words), {}
    top = parser(parsers)
    arguments = _parse(top, parsers, words)
    if arguments.settings is not None:
        first = words.index(arguments.command) + 1
        extra = settings.words(arguments.settings, arguments.command, parsers)
        # What is given last wins. Naming the file once more ends a list of values, so that it does not take what
        # follows.
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


def parser(parsers: dict[str, Parser] | None = None) -> Parser:
    """The parser of the command line; those of its commands go into `parsers`."""
    parsers = {} if parsers is None else parsers
    top = Parser(
        prog="kernel-eft",
        description="Statistics of finite-width residual networks at initialisation: theory and sampled networks.",
        epilog="`kernel-eft theory --help` shows the options of a command, and examples.",
    )
    version = importlib.metadata.version("kernel-eft-jax")
    top.add_argument("--version", action="version", version=f"kernel-eft {version}")
    commands = top.add_subparsers(required=True, metavar="command", dest="command", parser_class=Parser)
    for name, (add, summary) in COMMANDS.items():
        blocks = BLOCKS if add in WITH_MODEL else ""
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog="\n".join(part for part in (EXAMPLES[name], blocks) if part),
            formatter_class=_Help,
            allow_abbrev=False,
        )
        add(sub)
        _add_common(sub)
        for action in sub.options().values():
            if action.metavar is None and action.choices is None:
                action.metavar = "FILE" if action.dest in ("out", "figure") else "NUMBER"
        parsers[name] = sub
    return top


def _add_paper(sub):
    sub.add_argument(
        "--networks", type=whole(64, LARGEST), help="networks of the main job (default: 40,000; published: 5 million)"
    )
    _add_seed(sub)
    sub.add_argument("--out", type=path, default="results", help="folder for figures, data and table")
    sub.add_argument("--all", action="store_true", help="every published number, and what lies beyond them")
    sub.add_argument("--full", action="store_true", help="with --all: as many networks as were published (hours)")


def _add_theory(sub):
    _add_solve(sub)
    _add_out(sub, "theory.nc", "netCDF file for the result")


def _add_sample(sub):
    _add_setting(sub)
    sub.add_argument("--width", type=whole(1, LARGEST), default=64, help="neurons in a layer")
    _add_layers(sub)
    sub.add_argument("--times", type=whole(2, 10_000), default=41, help="number of depths to save")
    _add_ensemble(sub, networks=10_000)
    sub.add_argument(
        "--sampler",
        choices=SAMPLERS,
        default="block",
        help="draw increments by their law (with control variates), or weights",
    )
    sub.add_argument(
        "--target",
        nargs=2,
        metavar=("ENTRY", "ERROR"),
        help="stop before --networks once an entry at the last depth has this standard error: K1 0.002, or "
        "V4:0,0,1,1 0.1 (K1 is K1:0,0); any quantity of the result",
    )
    sub.add_argument(
        "--checkpoint",
        type=path,
        metavar="FILE",
        help="keep the sums so far in this file, every minute and on Ctrl-C; the same command goes on from it",
    )
    _add_out(sub, "sample.nc", "netCDF file for the result")


def _add_compare(sub):
    sub.add_argument("theory", type=path, metavar="theory.nc", help="a result of `kernel-eft theory`")
    sub.add_argument("sample", type=path, metavar="sample.nc", help="a result of `kernel-eft sample`")
    sub.add_argument("--out", default="compare.png", help=f"figure ({', '.join(FIGURES)}), or - for the table alone")


def _add_fit(sub):
    sub.add_argument("data", type=path, help=".npz file with arrays G, K0, layers, width, eps, or .nc file of `sample`")
    sub.add_argument("--free", nargs="+", default=["C_W", "C_b"], metavar="NAME", help="parameters to estimate")
    sub.add_argument("--with-V4", action="store_true", help="fit covariances too, which tell the width")
    _add_model(sub, role=": where the search starts if free, held if not")
    _add_closure(sub)
    _add_out(sub, "fit.json", "JSON file for the result")


def _add_sensitivity(sub):
    _add_solve(sub)
    _add_out(sub, "sensitivity.npz", ".npz file for the result")


def _add_validity(sub):
    _add_setting(sub)
    _add_layers(sub)
    sub.add_argument("--tolerance", type=positive, default=0.05, help="relative error of V4 and K1 that is tolerable")
    sub.add_argument(
        "--degree", type=whole(2, 1000), default=40, help="degree of the HermiteTower that is taken as exact"
    )
    _add_ensemble(sub, networks=16_384)
    figures = ", ".join(FIGURES)
    sub.add_argument(
        "--out", default="validity.png", help=f"figure ({figures}), with a JSON file beside it; - for none"
    )


def _add_network(sub):
    sub.add_argument(
        "recipe",
        nargs="?",
        choices=RECIPES,
        help="a stack as people initialise it; without one, say your block by --block and --eps",
    )
    _add_setting(sub, stack=", or that of the recipe or of --own")
    sub.add_argument("--width", type=whole(1, LARGEST), help="neurons of the stream (default: 512, or that of --own)")
    sub.add_argument("--depth", type=whole(1, DEEPEST), help="number of blocks (default: 24, or that of --own)")
    sub.add_argument("--eps", type=positive, help="step size where no recipe says it (default: 1, or that of --own)")
    sub.add_argument(
        "--own",
        nargs="+",
        type=path,
        metavar="FILE",
        help="kernels of networks of yours: .npz files with arrays G, K0, layers, width, eps; one file a width",
    )
    sub.add_argument("--tolerance", type=positive, default=0.05, help="relative error of order 1/n that is tolerable")
    _add_ensemble(sub, networks=4096)
    figures = ", ".join(FIGURES)
    sub.add_argument("--out", default="network.png", help=f"figure ({figures}), with a JSON file beside it; - for none")


def _add_solve(sub):
    _add_setting(sub)
    _add_closure(sub)
    sub.add_argument("--T", type=positive, help="last depth time t = eps^2 l of the continuum (default: 2)")
    sub.add_argument("--eps", type=positive, help="step size: asks for the layer recursion, with --depth")
    sub.add_argument("--depth", type=whole(1, DEEPEST), help="number of layers, with --eps")
    sub.add_argument("--times", type=whole(2, 10_000), default=41, help="number of depths to save")


def _add_closure(sub):
    sub.add_argument("--closure", type=one_of(CLOSURES), choices=CLOSURES, default=CLOSURES[0], help="the theory")
    sub.add_argument(
        "--degree",
        type=whole(2, 1000),
        help="degree of SigmaKernel or HermiteTower (default: 20 of SigmaKernel; HermiteTower chooses)",
    )


def _add_layers(sub):
    sub.add_argument("--depth", type=whole(1, DEEPEST), default=200, help="number of layers")
    sub.add_argument("--eps", type=positive, default=0.1, help="step size")


def _add_ensemble(sub, networks):
    sub.add_argument("--networks", type=whole(64, LARGEST), default=networks, help="how many networks to sample")
    _add_seed(sub)


def _add_seed(sub):
    text = "seed of the random numbers; the same seed gives the same networks"
    sub.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, help=text)


def _add_model(sub, role=""):
    sub.add_argument(
        "--activation",
        metavar="NAME[:PARAMETER=VALUE]",
        help="tanh, erf, relu, gelu, silu and others; a parameter follows the name, as in leaky-relu:slope=0.1 or "
        "polynomial:coefficients=0,1,-0.3; an unknown name prints the list of all (default: tanh)",
    )
    sub.add_argument("--C_W", type=variance, help=f"weight variance times width{role} (default: 2)")
    sub.add_argument("--C_b", type=variance, help=f"bias variance{role} (default: 0)")
    sub.add_argument("--block", metavar="LAYER,LAYER,...", help="a block of several layers instead; see below")
    sub.add_argument("--decay", type=number, help="c: the stream is multiplied by sqrt(1 - c eps^2) (default: 0)")


def _add_setting(sub, stack=""):
    _add_model(sub)
    sub.add_argument("--inputs", type=whole(1, 10_000), help="number of inputs (default: 2)")
    sub.add_argument("--diagonal", type=positive, help=f"input kernel on its diagonal (default: 2{stack})")
    sub.add_argument("--off-diagonal", type=number, help=f"input kernel off its diagonal (default: 0.6{stack})")
    sub.add_argument("--K0", type=path, metavar="FILE", help="input kernel from a .npy or .csv file instead")


def _add_out(sub, name, what):
    sub.add_argument("--out", default=name, help=f"{what}, or - for the table alone")
    sub.add_argument("--figure", help=f"figure ({', '.join(FIGURES)}); by default a PNG file beside the result")


def _add_common(sub):
    sub.add_argument("--settings", type=path, metavar="FILE", help="options from a TOML file; the command line wins")
    sub.add_argument("--overwrite", action="store_true", help="replace files that exist")
    sub.add_argument("--quiet", action="store_true", help="no progress and no table")
    if sub.prog.split()[-1] != "paper":
        sub.add_argument("--json", action="store_true", help="the table as JSON on standard output")
    sub.add_argument(
        "--no-cache",
        dest="cache",
        action="store_false",
        help="keep no compiled programs; else the cache folder of the user has them, and later calls are fast",
    )


COMMANDS = {
    "paper": (_add_paper, "Repeat the main job of arXiv 2604.15742: figures, data, and a table beside it."),
    "theory": (_add_theory, "Solve for K0, V4 and K1, in the continuum or (with --eps) layer by layer."),
    "sample": (_add_sample, "Sample networks: means and covariances of their kernels, with errors."),
    "compare": (_add_compare, "Compare a theory with sampled networks: differences in standard errors."),
    "fit": (_add_fit, "Estimate hyperparameters from kernels of networks, your own or those of `kernel-eft sample`."),
    "sensitivity": (_add_sensitivity, "Derivatives of K0, V4 and K1 by every parameter and input."),
    "network": (
        _add_network,
        "How the activations of your network grow with depth, differ between seeds, and change with the width.",
    ),
    "validity": (_add_validity, "How deep the closures hold, and how wide a network must be for order 1/n."),
}
WITH_MODEL = (_add_theory, _add_sample, _add_fit, _add_sensitivity, _add_validity, _add_network)


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
                f"The recipe {arguments.recipe} says block and steps itself: leave out {own[0]}, or the recipe."
            )
        if not arguments.recipe and not given("block", "activation"):
            raise ValueError(f"Name a recipe ({', '.join(RECIPES)}), or your block by `--block` with `--eps`.")
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
