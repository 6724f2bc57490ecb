"""The options of each command, and the groups of options that several commands share."""

from ..machine import LARGEST_COUNT
from .outputs import FIGURE_SUFFIXES
from .values import number, one_of, path, positive, variance, whole

CLOSURE_NAMES = ("HermiteTower", "SigmaKernel", "GOnly")
SAMPLER_NAMES = ("block", "weights")
RECIPE_NAMES = ("gpt2", "pre-norm", "depth-mup", "ln-scaling", "umup", "resnet-v2", "plain")
DEEPEST = 1_000_000


def paper_options(sub):
    sub.add_argument(
        "--networks",
        type=whole(64, LARGEST_COUNT),
        help="networks of the main job (default: 40,000; published: 5 million)",
    )
    _add_seed(sub)
    sub.add_argument("--out", type=path, default="results", help="folder for figures, data and table")
    sub.add_argument("--all", action="store_true", help="every published number, and what lies beyond them")
    sub.add_argument("--full", action="store_true", help="with --all: as many networks as were published (hours)")


def theory_options(sub):
    _add_solve(sub)
    _add_out(sub, "theory.nc", "netCDF file for the result")


def sample_options(sub):
    _add_setting(sub)
    sub.add_argument("--width", type=whole(1, LARGEST_COUNT), default=64, help="neurons in a layer")
    _add_layers(sub)
    sub.add_argument("--times", type=whole(2, 10_000), default=41, help="number of depths to save")
    _add_ensemble(sub, networks=10_000)
    sub.add_argument(
        "--sampler",
        choices=SAMPLER_NAMES,
        default="block",
        help="block: draw the increments from their law, with control variates; weights: draw every weight",
    )
    sub.add_argument(
        "--target",
        nargs=2,
        metavar=("ENTRY", "ERROR"),
        help="stop early, as soon as an entry of the result at the last depth has this standard error, such as K1 "
        "0.002 or V4:0,0,1,1 0.1 (K1 is short for K1:0,0)",
    )
    sub.add_argument(
        "--checkpoint",
        type=path,
        metavar="FILE",
        help="save the sums to this .npz file every minute and on Ctrl-C; the same command, given again, continues "
        "from the file",
    )
    _add_out(sub, "sample.nc", "netCDF file for the result")


def compare_options(sub):
    sub.add_argument("theory", type=path, metavar="theory.nc", help="a result of `kernel-eft theory`")
    sub.add_argument("sample", type=path, metavar="sample.nc", help="a result of `kernel-eft sample`")
    sub.add_argument(
        "--out", default="compare.png", help=f"figure ({', '.join(FIGURE_SUFFIXES)}), or - for the table alone"
    )


def fit_options(sub):
    sub.add_argument("data", type=path, help=".npz file with arrays G, K0, layers, width, eps, or .nc file of `sample`")
    sub.add_argument("--free", nargs="+", default=["C_W", "C_b"], metavar="NAME", help="parameters to estimate")
    sub.add_argument(
        "--with-V4",
        action="store_true",
        help="fit the covariances of the kernels too, from which the width can be estimated",
    )
    _add_model(sub, role=": where the search starts if --free names it, fixed otherwise")
    _add_closure(sub)
    _add_out(sub, "fit.json", "JSON file for the result")


def sensitivity_options(sub):
    _add_solve(sub)
    _add_out(sub, "sensitivity.npz", ".npz file for the result")


def validity_options(sub):
    _add_setting(sub)
    _add_layers(sub)
    sub.add_argument(
        "--tolerance", type=positive, default=0.05, help="largest relative error of V4 and K1 that you accept"
    )
    sub.add_argument(
        "--degree", type=whole(2, 1000), default=40, help="degree of the HermiteTower that is taken as exact"
    )
    _add_ensemble(sub, networks=16_384)
    figures = ", ".join(FIGURE_SUFFIXES)
    sub.add_argument(
        "--out", default="validity.png", help=f"figure ({figures}), with a JSON file beside it; - for no files"
    )


def network_options(sub):
    sub.add_argument(
        "recipe",
        nargs="?",
        choices=RECIPE_NAMES,
        help="a stack that people use, with its usual initialisation; leave it out and describe your own block by "
        "--block and --eps",
    )
    _add_setting(sub, stack=", or that of the recipe or of --own")
    neurons = whole(1, LARGEST_COUNT)
    sub.add_argument("--width", type=neurons, help="neurons of the stream (default: 512, or that of --own)")
    sub.add_argument("--depth", type=whole(1, DEEPEST), help="number of blocks (default: 24, or that of --own)")
    sub.add_argument(
        "--eps", type=positive, help="factor of each branch, if you name no recipe (default: 1, or that of --own)"
    )
    sub.add_argument(
        "--own",
        nargs="+",
        type=path,
        metavar="FILE",
        help="kernels of your own networks: .npz files with arrays G, K0, layers, width, eps; one file for each width",
    )
    sub.add_argument(
        "--tolerance",
        type=positive,
        default=0.05,
        help="largest relative error of the theory of order 1/n that you accept",
    )
    _add_ensemble(sub, networks=4096)
    figures = ", ".join(FIGURE_SUFFIXES)
    sub.add_argument(
        "--out", default="network.png", help=f"figure ({figures}), with a JSON file beside it; - for no files"
    )


def _add_solve(sub):
    _add_setting(sub)
    _add_closure(sub)
    sub.add_argument("--T", type=positive, help="last depth time t = eps^2 l of the continuum (default: 2)")
    sub.add_argument(
        "--eps",
        type=positive,
        help="factor of each branch: solve layer by layer, with --depth, instead of in the continuum",
    )
    sub.add_argument("--depth", type=whole(1, DEEPEST), help="number of layers; needs --eps")
    sub.add_argument("--times", type=whole(2, 10_000), default=41, help="number of depths to save")


def _add_closure(sub):
    sub.add_argument(
        "--closure", type=one_of(CLOSURE_NAMES), choices=CLOSURE_NAMES, default=CLOSURE_NAMES[0], help="the theory"
    )
    sub.add_argument(
        "--degree",
        type=whole(2, 1000),
        help="degree of the expansion of SigmaKernel (default: 20) or HermiteTower (default: from its error bounds)",
    )


def _add_layers(sub):
    sub.add_argument("--depth", type=whole(1, DEEPEST), default=200, help="number of layers")
    sub.add_argument("--eps", type=positive, default=0.1, help="factor of each branch")


def _add_ensemble(sub, networks):
    sub.add_argument("--networks", type=whole(64, LARGEST_COUNT), default=networks, help="how many networks to sample")
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
    sub.add_argument(
        "--block", metavar="LAYER,LAYER,...", help="a block of several layers instead of --activation; see below"
    )
    sub.add_argument("--decay", type=number, help="c: the stream is multiplied by sqrt(1 - c eps^2) (default: 0)")


def _add_setting(sub, stack=""):
    _add_model(sub)
    sub.add_argument("--inputs", type=whole(1, 10_000), help="number of inputs (default: 2)")
    sub.add_argument("--diagonal", type=positive, help=f"input kernel on its diagonal (default: 2{stack})")
    sub.add_argument("--off-diagonal", type=number, help=f"input kernel off its diagonal (default: 0.6{stack})")
    sub.add_argument("--K0", type=path, metavar="FILE", help="the whole input kernel, from a .npy or .csv file")


def _add_out(sub, name, what):
    sub.add_argument("--out", default=name, help=f"{what}, or - for the table alone")
    sub.add_argument("--figure", help=f"figure ({', '.join(FIGURE_SUFFIXES)}); by default a PNG file beside the result")


def common_options(sub):
    sub.add_argument(
        "--settings",
        type=path,
        metavar="FILE",
        help="a TOML file with options; options on the command line override them",
    )
    sub.add_argument("--overwrite", action="store_true", help="replace files that exist")
    sub.add_argument("--quiet", action="store_true", help="print no progress and no table")
    if sub.prog.split()[-1] != "paper":
        sub.add_argument("--json", action="store_true", help="print the table as JSON")
    sub.add_argument(
        "--no-cache",
        dest="cache",
        action="store_false",
        help="do not keep compiled programs in the cache folder of the user, where they make later calls fast",
    )
