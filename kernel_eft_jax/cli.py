"""The command `kernel-eft`: arguments in, library calls, files out.

    kernel-eft paper     the published figures, sampled and predicted, beside the published numbers
    kernel-eft theory    K0, V4 and K1 of your own setting
    kernel-eft sample    the same of sampled networks, with standard errors
    kernel-eft fit       hyperparameters of networks from their kernels, with intervals
    kernel-eft sensitivity   how K0, V4 and K1 move with every parameter
    kernel-eft validity  how deep the closures hold, and how wide a network must be

Works in float64. Exit codes: 0 done, 1 the run failed, 2 bad arguments, 130 interrupted.
"""

import argparse
import difflib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from . import activations, closures, diagnostics, inference, paper, storage
from .checks import check_count, check_positive
from .ensemble import BlockSampler, Estimate, WeightSampler, estimate
from .ensemble.statistics import Quantities
from .model import Model
from .trajectory import solve

ACTIVATIONS: dict[str, Callable[..., activations.Activation]] = {
    "tanh": activations.Tanh,
    "erf": activations.Erf,
    "relu": activations.ReLU,
    "leaky-relu": activations.LeakyReLU,
    "gelu": activations.GELU,
    "silu": activations.SiLU,
    "softplus": activations.Softplus,
    "sin": activations.Sin,
    "linear": activations.Linear,
    "polynomial": activations.Polynomial,
}
CLOSURES = {"g-only": closures.GOnly, "sigma-kernel": closures.SigmaKernel, "hermite-tower": closures.HermiteTower}
SAMPLERS = {"block": BlockSampler, "weights": WeightSampler}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    arguments = parser().parse_args(argv)
    jax.config.update("jax_enable_x64", True)
    try:
        arguments.command(arguments)
    except ValueError as error:
        return _fail(error, 2)
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}.", 2)
    except (RuntimeError, FloatingPointError, MemoryError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt as stop:
        return _fail(str(stop) or "interrupted", 130)
    return 0


def _fail(why: Exception | str, code: int) -> int:
    print(f"kernel-eft: {why}", file=sys.stderr)
    return code


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults where there are any."""

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="kernel-eft",
        description="Statistics of finite-width residual networks at initialisation: theory and sampled networks.",
    )
    commands = top.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[[argparse.Namespace], None], summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary, formatter_class=_Help)
        sub.set_defaults(command=run)
        return sub

    study = command(
        "paper", run_paper, "Repeat the main job of arXiv 2604.15742: figures, data, and a table beside it."
    )
    _add_ensemble(study, networks=paper.LAPTOP.main)
    study.add_argument("--out", type=Path, default=Path("results"), help="directory for figures, data and table")
    study.add_argument(
        "--all",
        action="store_true",
        help="every published number: residual of V4, source of K1, quadrature, sweeps, other activations too",
    )
    study.add_argument("--full", action="store_true", help="with --all: as many networks as were published (hours)")

    theory = command("theory", run_theory, "Solve for K0, V4 and K1, in the continuum or (with --eps) layer by layer.")
    _add_theory(theory, closure="g-only")
    theory.add_argument("--out", type=Path, default=Path("theory.nc"), help="netCDF file for the result")

    sample = command("sample", run_sample, "Sample networks: means and covariances of their kernels, with errors.")
    _add_model(sample)
    sample.add_argument("--width", type=int, default=64, help="neurons in a layer")
    sample.add_argument("--depth", type=int, default=200, help="number of layers")
    sample.add_argument("--eps", type=float, default=0.1, help="step size")
    _add_ensemble(sample, networks=10_000)
    sample.add_argument(
        "--sampler",
        choices=SAMPLERS,
        default="block",
        help="draw increments by their law (with control variates), or weights",
    )
    sample.add_argument(
        "--target",
        nargs=2,
        metavar=("ENTRY", "ERROR"),
        help="stop before --networks once an entry at the last depth has this standard error: K1 0.002, or V4:0,0,1,1 0.1 "
        f"(K1 is K1:0,0; one of {', '.join(Quantities._fields)})",
    )
    sample.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="keep the sums so far in this file, every minute and on Ctrl-C; the same command goes on from it",
    )
    sample.add_argument("--out", type=Path, default=Path("sample.nc"), help="netCDF file for the result")

    fit = command("fit", run_fit, "Estimate hyperparameters from kernels of networks, your own or sampled ones.")
    fit.add_argument(
        "data",
        type=Path,
        help=f".npz file with arrays {', '.join(inference.NEEDED)}, or .nc file of `kernel-eft sample`",
    )
    fit.add_argument("--free", nargs="+", default=["C_W", "C_b"], metavar="NAME", help="parameters to estimate")
    fit.add_argument("--with-V4", action="store_true", help="fit covariances too, which tell the width")
    _add_network(fit, role=": where the search starts if free, held if not")
    _add_closure(fit, closure="hermite-tower")
    fit.add_argument("--out", type=Path, default=Path("fit.json"), help="JSON file; a figure goes beside it")

    slopes = command("sensitivity", run_sensitivity, "Derivatives of K0, V4 and K1 by every parameter and input.")
    _add_theory(slopes, closure="g-only")
    slopes.add_argument("--out", type=Path, default=Path("sensitivity.npz"), help=".npz file; a figure goes beside it")

    window = command(
        "validity", run_validity, "How deep the closures hold, and how wide a network must be for order 1/n."
    )
    _add_inputs(window)
    window.add_argument("--depth", type=int, default=200, help="number of layers")
    window.add_argument("--eps", type=float, default=0.1, help="step size")
    window.add_argument("--tolerance", type=float, default=0.05, help="relative error of V4 and K1 that is tolerable")
    window.add_argument("--degree", type=int, default=40, help="of the Hermite tower that is taken as exact")
    _add_ensemble(window, networks=16_384)
    window.add_argument(
        "--out", type=Path, default=Path("validity.png"), help="figure (PNG, PDF), with a JSON file beside it"
    )
    return top


def _add_theory(sub, closure):
    _add_model(sub)
    _add_closure(sub, closure)
    sub.add_argument("--T", type=float, help="last depth time t = eps^2 l of the continuum (default: 2)")
    sub.add_argument("--eps", type=float, help="step size: asks for the layer recursion, with --depth")
    sub.add_argument("--depth", type=int, help="number of layers, with --eps")


def _add_closure(sub, closure):
    sub.add_argument("--closure", choices=CLOSURES, default=closure, help="the theory")
    sub.add_argument("--degree", type=int, help="where sigma-kernel or hermite-tower is cut off")


def _add_ensemble(sub, networks):
    sub.add_argument("--networks", type=int, default=networks, help="how many networks to sample")
    sub.add_argument("--seed", type=int, default=0, help="of the random numbers; the same seed gives the same networks")


def _add_network(sub, role=""):
    sub.add_argument(
        "--activation",
        default="tanh",
        metavar="NAME[:PARAMETER=VALUE]",
        help=f"one of {', '.join(ACTIVATIONS)}; with a parameter as in softplus:beta=5 or polynomial:coefficients=0,1,-0.3",
    )
    sub.add_argument("--C_W", type=float, default=2.0, help=f"weight variance times width{role}")
    sub.add_argument("--C_b", type=float, default=0.0, help=f"bias variance{role}")


def _add_model(sub):
    _add_inputs(sub)
    sub.add_argument("--times", type=int, default=41, help="number of depths to save")


def _add_inputs(sub):
    _add_network(sub)
    sub.add_argument("--inputs", type=int, default=2, help="number of inputs")
    sub.add_argument("--diagonal", type=float, default=2.0, help="input kernel on its diagonal")
    sub.add_argument("--off-diagonal", type=float, default=0.6, help="input kernel off its diagonal")
    sub.add_argument("--K0", type=Path, metavar="FILE", help="input kernel from a .npy or .csv file instead")


def run_paper(arguments: argparse.Namespace) -> None:
    """Figures, data and table of the published study."""
    start, key = time.perf_counter(), jax.random.key(arguments.seed)
    if arguments.full and not arguments.all:
        raise ValueError("Argument `--full` goes with `--all`: the whole study at the published sizes.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    _check_writable(arguments.out / "table.md")
    sizes = paper.FULL if arguments.full else paper.LAPTOP._replace(main=arguments.networks)
    print(
        f"Sampling {sizes.main:,} networks of {paper.MAIN.depth} layers, then solving {len(paper.THEORIES)} theories."
    )
    if arguments.all:
        checkpoint = arguments.out / "main-job.checkpoint"
        items = paper.everything(sizes, key, checkpoint=checkpoint)
    else:
        items = iter([("main job", paper.main_item(paper.main_job(sizes.main, key)))])
    sections, files, tables = [], [], []
    for name, item in items:
        files += paper.write(item, arguments.out)
        sections += item.sections
        tables = paper.write_table(sections, str(paper.MAIN), arguments.out)
        print(f"\n{paper.markdown(item.sections, name)}", flush=True)
    seconds = time.perf_counter() - start
    print(f"{len(files) + len(tables)} files in {arguments.out}, figures among them, after {seconds:.0f} s.")


def run_theory(arguments: argparse.Namespace) -> None:
    """One theory, into a file."""
    _check_writable(arguments.out)
    model, K0, closure, ts = _theory(arguments)
    solution = solve(model, K0, ts, closure=closure, eps=arguments.eps)
    settings = {"model": model, "closure": closure, "eps": "continuum" if arguments.eps is None else arguments.eps}
    _report(storage.save(solution, arguments.out, **settings), solution.ts, solution.K0, solution.V4, solution.K1)
    print(f"Estimated relative error of the Gaussian expectations: {float(solution.stats['expectation_error']):.1e}.")
    if solution.truncation is not None:
        V4, K1 = (float(np.max(x)) for x in (solution.truncation.V4, solution.truncation.K1))
        print(f"Estimated truncation error, at most: {V4:.2g} in V4, {K1:.2g} in K1.")


def run_sample(arguments: argparse.Namespace) -> None:
    """One ensemble, into a file."""
    _check_writable(arguments.out)
    check_count(arguments.times, "--times", 2)
    model, K0 = _model(arguments), _kernel(arguments)
    sizes = {name: getattr(arguments, name) for name in ("width", "depth", "eps", "networks")}
    sampler = SAMPLERS[arguments.sampler]()
    control = arguments.sampler == "block"
    options = {"save_at": _layers(arguments), "target": _target(arguments, len(K0)), "checkpoint": arguments.checkpoint}
    key = jax.random.key(arguments.seed)
    result = estimate(model, K0, **sizes, key=key, sampler=sampler, control=control, **options)
    settings = {"model": model, "eps": arguments.eps, "seed": arguments.seed, "sampler": sampler}
    path = storage.save(result, arguments.out, **settings)
    _report(path, result.ts, result.G, result.V4, result.K1, result.stderr)


def run_fit(arguments: argparse.Namespace) -> None:
    """Parameters from kernels, into a file and a figure."""
    from .inference_plots import plot_fit
    from .plots import save

    _check_writable(arguments.out, ".json")
    data, settings = _data(arguments.data)
    start, closure = inference.Experiment(_model(arguments), **settings), _closure(arguments)
    result = inference.fit(data, start, arguments.free, closure=closure, with_V4=arguments.with_V4)
    arguments.out.write_text(json.dumps(inference.fit_record(result, closure), indent=1) + "\n")
    save(plot_fit(result), arguments.out)
    print(f"{result}\nWritten to {arguments.out}, with a figure beside it.")
    if not result.converged:
        raise RuntimeError(f"The fit did not converge, and {arguments.out} holds where it stopped: start elsewhere.")


def run_sensitivity(arguments: argparse.Namespace) -> None:
    """Derivatives of a trajectory, into a file and a figure."""
    from .inference_plots import plot_sensitivity
    from .plots import save

    _check_writable(arguments.out, ".npz")
    model, K0, closure, ts = _theory(arguments)
    result = inference.sensitivity(model, K0, ts, closure=closure, eps=arguments.eps)
    np.savez(arguments.out, **inference.sensitivity_arrays(result))  # pyright: ignore[reportArgumentType]
    save(plot_sensitivity(result), arguments.out)
    zero = [name for name, value in zip(result.names, result.values, strict=True) if value == 0]
    print(f"Change in per cent for one per cent of each parameter, at t = {float(ts[-1]):.4g}:")
    print(f"{'':>20} {'K0[00]':>12} {'V4[00,00]':>12} {'K1[00]':>12}")
    for name in result.names:
        if name not in zero:
            _row(name, result.elasticity(name))
    if zero:
        print("These are zero, and one per cent of them is nothing; change by one unit of each (the derivative):")
        for name in zero:
            _row(name, result[name])
    print(f"All derivatives are in {arguments.out}, with a figure beside it.")


def _row(name, kernels):
    """Entries 00 at the last depth."""
    K0, V4, K1 = (np.asarray(x[-1]).flat[0] for x in kernels)
    print(f"{name:>20} {K0:12.4g} {V4:12.4g} {K1:12.4g}")


def run_validity(arguments: argparse.Namespace) -> None:
    """Depths and widths where the theories hold, into a figure and a file."""
    from .diagnostic_plots import plot_window
    from .plots import save

    _check_writable(arguments.out)
    model, K0, key = _model(arguments), _kernel(arguments), jax.random.key(arguments.seed)
    window = diagnostics.validity_window(
        model,
        K0,
        arguments.depth,
        arguments.eps,
        arguments.tolerance,
        key=key,
        networks=arguments.networks,
        reference=closures.HermiteTower(arguments.degree),
    )
    title = f"{arguments.activation}, C_W = {arguments.C_W:g}, C_b = {arguments.C_b:g}, eps = {arguments.eps:g}"
    save(plot_window(window, title), arguments.out)
    arguments.out.with_suffix(".json").write_text(json.dumps(window.record(), indent=1) + "\n")
    print(f"{window}\nFigure and numbers are in {arguments.out.with_suffix('.*')}.")


def _theory(arguments):
    """Model, input kernel, closure and depth times of a theory."""
    check_count(arguments.times, "--times", 2)
    model, K0 = _model(arguments), _kernel(arguments)
    closure = _closure(arguments)
    if arguments.eps is None:
        if arguments.depth is not None:
            raise ValueError("Argument `--depth` counts layers: give `--eps` too, or `--T` for the continuum.")
        T = 2.0 if arguments.T is None else arguments.T
        check_positive(T, "--T")
        ts = np.linspace(0, T, arguments.times)
    else:
        if arguments.T is not None or arguments.depth is None:
            raise ValueError("Argument `--eps` asks for layers: give their number as `--depth`, and leave out `--T`.")
        check_positive(arguments.eps, "--eps")
        check_count(arguments.depth, "--depth")
        ts = arguments.eps**2 * np.array(_layers(arguments))
    return model, K0, closure, ts


def _data(path):
    """What `fit` takes, kernels or an Estimate, and the settings of its experiment."""
    if path.suffix != ".nc":
        return inference.read_kernels(path)
    path.stat()  # raises for a file that is not there, and names it
    result = storage.load(path)
    if not isinstance(result, Estimate):
        raise ValueError(
            f"{path} holds a theory, and `fit` wants sampled networks: give a file of `kernel-eft sample`."
        )
    layers = result.layers.tolist()
    if layers[0] != 0 or layers[-1] == 0:
        raise ValueError(
            f"{path} has layers {layers}, and `fit` wants layer 0 for the input kernel and later ones: sample them again."
        )
    eps = np.sqrt(result.ts[-1] / layers[-1])
    return result, {"K0": result.K0[0], "layers": layers, "width": result.width, "eps": eps}


def _model(arguments):
    name, _, parameter = arguments.activation.partition(":")
    if name not in ACTIVATIONS:
        close = difflib.get_close_matches(name.lower().replace("_", "-"), ACTIVATIONS, 1, 0.4)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(f"Unknown activation {name!r}.{hint} Known: {', '.join(ACTIVATIONS)}.")
    keywords = {}
    if parameter:
        key, _, text = parameter.partition("=")
        try:
            numbers = [float(number) for number in text.split(",")]
        except ValueError:
            raise ValueError(
                f"Activation parameter {parameter!r} must read PARAMETER=NUMBER, such as beta=5."
            ) from None
        keywords[key] = numbers if "," in text else numbers[0]
    try:
        activation = ACTIVATIONS[name](**keywords)
    except TypeError:
        raise ValueError(f"Activation {name!r} does not go with the parameters {parameter!r}; see --help.") from None
    return Model(activation, arguments.C_W, arguments.C_b)


def _kernel(arguments):
    path = arguments.K0
    if path is None:
        check_count(arguments.inputs, "--inputs")
        eye = np.eye(arguments.inputs)
        return arguments.off_diagonal + (arguments.diagonal - arguments.off_diagonal) * eye
    readers = {".npy": np.load, ".csv": lambda path: np.loadtxt(path, delimiter=",", ndmin=2)}
    if path.suffix not in readers:
        raise ValueError(f"Argument `--K0` must name a .npy or .csv file, but is {path}.")
    try:
        return readers[path.suffix](path)
    except (ValueError, EOFError) as error:
        raise ValueError(f"File {path} does not hold a matrix of numbers.") from error


def _closure(arguments):
    if arguments.degree is None:
        return CLOSURES[arguments.closure]()
    if arguments.closure == "g-only":
        raise ValueError("Argument `--degree` belongs to sigma-kernel and hermite-tower; g-only has none.")
    return CLOSURES[arguments.closure](arguments.degree)


def _layers(arguments):
    return np.unique(np.round(np.linspace(0, arguments.depth, arguments.times)).astype(int)).tolist()


def _target(arguments, inputs):
    """The entry and the error of `--target`, as `estimate` takes them."""
    if arguments.target is None:
        return None
    (name, _, text), error = arguments.target[0].partition(":"), arguments.target[1]
    names = [n for n in Quantities._fields if n != "V4_excess" or arguments.sampler == "block"]
    if name not in names:
        raise ValueError(f"Argument `--target` must name one of {', '.join(names)}, but names {name!r}.")
    rank = 4 if name.startswith("V") else 2
    place = text.split(",") if text else ["0"] * rank
    if len(place) != rank or not all(i.isdecimal() and int(i) < inputs for i in place):
        example = ",".join(["0"] * rank)
        raise ValueError(
            f"Argument `--target` must be like {name}:{example}, of inputs 0 to {inputs - 1}, but is {name}:{text}."
        )
    try:
        wanted = float(error)
    except ValueError:
        raise ValueError(
            f"Argument `--target` must end in a number, the standard error wanted, but ends in {error!r}."
        ) from None
    check_positive(wanted, "--target")
    entry = (-1, *map(int, place))
    return (lambda quantities: getattr(quantities, name)[entry]), wanted


def _check_writable(path, suffix=None):
    if suffix is not None and path.suffix != suffix:
        raise ValueError(f"Argument `--out` must end in {suffix}, but is {path}: the figure takes other endings.")
    if not path.parent.is_dir():
        raise ValueError(f"Argument `--out` must lie in a directory that exists, but {path.parent} does not.")
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        raise ValueError(f"Argument `--out` must be a file that can be written, but {path} cannot.")


def _report(path, ts, mean, V4, K1, stderr=None):
    """The component 00 at eleven depths, and where everything is."""
    name = "K0" if stderr is None else "E[G]"
    print(f"{'t':>8} {name + '[00]':>20} {'V4[00,00]':>20} {'K1[00]':>20}")
    for i in np.unique(np.linspace(0, len(ts) - 1, 11).astype(int)):
        values = [mean[i, 0, 0], V4[i, 0, 0, 0, 0], K1[i, 0, 0]]
        errors = [] if stderr is None else [stderr.G[i, 0, 0], stderr.V4[i, 0, 0, 0, 0], stderr.K1[i, 0, 0]]
        shown = (
            [f"{v:.6g} ± {e:.1g}" for v, e in zip(values, errors, strict=True)]
            if errors
            else [f"{v:.6g}" for v in values]
        )
        print(" ".join([f"{float(ts[i]):8.4g}", *(f"{text:>20}" for text in shown)]))
    print(f"All entries are in {path}: kernel_eft_jax.storage.load, or xarray.open_dataset, reads it.")
