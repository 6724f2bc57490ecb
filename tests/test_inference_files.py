"""Kernels from files and arrays of users: what is read is what was saved, and each mistake gets a sentence with its
remedy."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

import kernel_eft_jax as keft
from kernel_eft_jax.ensemble.observables import InfiniteWidth, recorded
from kernel_eft_jax.ensemble.statistics import Sums
from kernel_eft_jax.inference import Experiment, fit, fit_record, read_kernels
from kernel_eft_jax.inference.data import check_same, observe
from kernel_eft_jax.pairs import pack

K0 = np.array([[1.0, 0.3], [0.3, 0.6]])
LAYERS, WIDTH, EPS, NETWORKS = [1, 3], 32, 0.4, 20
EXPERIMENT = Experiment(keft.Model(keft.Linear(), 1.5), K0, width=WIDTH, layers=LAYERS, eps=EPS)


def draw(dtype=np.float64):
    """Kernels of one layer's law, at both layers: phi @ phi.T / width, summed in the given precision."""
    phi = np.random.default_rng(0).standard_normal((NETWORKS, 2, 2, WIDTH)).astype(dtype)
    return (phi @ phi.swapaxes(2, 3) / dtype(WIDTH)).astype(dtype)


GOOD = {"G": draw(), "K0": K0, "layers": LAYERS, "width": WIDTH, "eps": EPS}


# --- files ------------------------------------------------------------------------------------------------------------


def test_kernels_come_from_a_file(tmp_path):
    np.savez(tmp_path / "kernels.npz", **GOOD)
    G, settings = read_kernels(tmp_path / "kernels.npz")
    np.testing.assert_array_equal(G, GOOD["G"])
    experiment = Experiment(keft.Model(keft.Linear(), 1.0), **settings)
    assert experiment.layers == (1, 3)
    assert (float(experiment.width), float(experiment.eps)) == (WIDTH, EPS)
    np.testing.assert_array_equal(experiment.K0, K0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": [64, 64]}, r"width in .*kernels\.npz must be one number, but has shape \(2,\)"),
        (
            {"eps": [[0.1]] * 2},
            r"eps in .*kernels\.npz must be one number, or one for each layer, but has shape \(2, 1\)",
        ),
        ({"eps": [0.1] * 2}, r"eps in .*kernels\.npz must be one number, or 3 of them, but holds 2"),
        ({"eps": "small"}, r"eps in .*kernels\.npz has dtype <U5: save it as float64"),
        ({"G": draw() + 0j}, r"G in .*kernels\.npz has dtype complex128: save it as float64"),
        (
            {"G": np.asarray(jnp.asarray(draw(), jnp.bfloat16))},
            r"G in .*kernels\.npz has dtype \|V2: save it as float64",
        ),
        ({"layers": [1.0, 3.0]}, r"layers in .*kernels\.npz has dtype float64: save it as integers"),
        ({"layers": np.array([1, None])}, r"kernels\.npz is not an \.npz file of numbers: Object arrays"),
    ],
)
def test_arrays_of_other_kinds_are_refused(tmp_path, changes, words):
    np.savez(tmp_path / "kernels.npz", **(GOOD | changes))
    with pytest.raises(ValueError, match=words):
        read_kernels(tmp_path / "kernels.npz")


def test_files_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / "kernels.npz"
    np.savez(path, G=GOOD["G"], K0=K0)
    with pytest.raises(ValueError, match=r"must be an \.npz file with .* but layers, width, eps are missing"):
        read_kernels(path)
    np.savez(path, **{name: array for name, array in GOOD.items() if name != "eps"})
    with pytest.raises(ValueError, match="but eps is missing"):
        read_kernels(path)
    np.savez_compressed(path, **GOOD)
    whole = path.read_bytes()
    damaged = whole[:300] + bytes(64) + whole[364:]
    for content in (b"", b"text", whole[:500], damaged):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"kernels\.npz is not an \.npz file of numbers"):
            read_kernels(path)
    with path.open("wb") as file:
        np.save(file, GOOD["G"])
    with pytest.raises(ValueError, match="G, K0, layers, width, eps are missing"):
        read_kernels(path)


@pytest.mark.thorough
def test_a_record_says_what_was_fitted_and_how():
    closure = keft.HermiteTower(2)
    e = Experiment(EXPERIMENT.model, K0[:1, :1], width=WIDTH, layers=LAYERS, eps=EPS)
    found = fit(GOOD["G"][:, :, :1, :1], e, ["C_W", "width"], closure=closure, with_V4=True, progress=False)
    record = json.loads(json.dumps(fit_record(found)))
    assert record["parameters"].keys() == {"C_W", "width"}
    assert record["parameters"]["C_W"]["value"] == found.values[0]
    assert record["held"] == {"C_b": 0.0, "decay": 0.0, "eps": EPS, "K0_scale": 1.0}
    assert record["closure"] == {"name": "HermiteTower", "degree": 2}
    assert record["with V4"] is True
    assert "Linear" in json.dumps(record["model in full"])


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [np.float16, np.float32, np.float64, "bfloat16", "list", "integers", "float32 in float64"]
)
def test_kernels_of_every_precision_are_taken(kind):
    """What rounding leaves of symmetry is averaged: sums of the same numbers in two orders, in each precision."""
    if kind == "integers":
        x = np.random.default_rng(0).integers(1, 100, (NETWORKS, 2, 2, 3))
        G = x @ x.swapaxes(2, 3)
    else:
        dtype = kind if isinstance(kind, type) else {"list": np.float64, "bfloat16": jnp.bfloat16}.get(kind, np.float32)
        phi = np.random.default_rng(0).standard_normal((NETWORKS, 2, 2, WIDTH)).astype(dtype)
        G = np.empty((NETWORKS, 2, 2, 2), np.float64 if kind == "float32 in float64" else dtype)
        for a, b in np.ndindex(2, 2):
            order = range(WIDTH) if a <= b else reversed(range(WIDTH))
            total = np.zeros((NETWORKS, 2), dtype)
            for i in order:
                total = total + phi[:, :, a, i] * phi[:, :, b, i]
            G[:, :, a, b] = total / dtype(WIDTH)
        assert not np.array_equal(G[..., 0, 1], G[..., 1, 0])
    mean = np.mean(np.asarray(G, np.float64), axis=0)
    y = observe(G.tolist() if kind == "list" else G, EXPERIMENT, False)
    assert y.statistics.dtype == np.float64
    expected = [[m[0, 0], 0.5 * (m[0, 1] + m[1, 0]), m[1, 1]] for m in mean]
    np.testing.assert_allclose(y.statistics.reshape(2, 3), expected, rtol=1e-12)


def changed(place, value):
    G = draw()
    G[place] = value
    return G


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            changed((7, 1, 0, 1), np.inf),
            r"`data` must be finite, but G\[0, 1\] of network 7 at layer 3 is inf .*layers before kernels overflow",
        ),
        (
            draw() - draw().mean(axis=0),
            r"`data` must be kernels with variances on their diagonal, but G\[.\] of .* is -.*not their deviations",
        ),
        (
            changed((3, 0, 0, 1), 0.25),
            r"`data` must be symmetric, but G\[0, 1\] of network 3 at layer 1 is 0\.25 and G\[1, 0\] is .*order of its axes",
        ),
        (draw() + 0j, r"`data` must be real numbers, but has dtype complex128"),
        (draw().astype(str), r"`data` must be numbers, but is array"),
        (
            np.where(np.arange(NETWORKS)[:, None, None, None] == 4, 0.0, draw()),
            "positive variances, but G.0, 0. of network 4 at layer 1 is 0.* leave such",
        ),
        (np.ma.masked_less(draw(), 0.1), "`data` must be whole, but has masked entries"),
        (np.repeat(draw()[:1], NETWORKS, axis=0), "different networks, but of its 20 networks only 1 differ"),
        (
            np.repeat(draw(), 2, axis=0),
            "different networks, but of its 40 networks only 20 differ: draw each with weights of its own",
        ),
        ([[1.0], [1.0, 2.0]], "`data` must be an array of numbers with rows of one length"),
    ],
)
def test_data_that_are_no_kernels_are_refused(data, words):
    with pytest.raises(ValueError, match=words.replace(r"\[.\]", r"\[., .\]")):
        observe(data, EXPERIMENT, False)


def test_an_asymmetry_is_rounding_up_to_the_precision_of_the_data():
    """Of n = 32 numbers in float32: 8 eps sqrt(n) is 5.4e-6; in half precision 4.4e-2."""
    G = draw()
    scale = np.sqrt(G[5, 0, 0, 0] * G[5, 0, 1, 1])
    for dtype, allowed in ((np.float64, 5.4e-6), (np.float32, 5.4e-6), (np.float16, 4.4e-2)):
        for factor in (0.9, 1.2):
            off = G.copy()
            off[5, 0, 0, 1] = off[5, 0, 1, 0] + factor * allowed * scale
            if factor < 1:
                observe(off.astype(dtype), EXPERIMENT, False)
            else:
                with pytest.raises(ValueError, match=r"G\[0, 1\] of network 5 at layer 1"):
                    observe(off.astype(dtype), EXPERIMENT, False)


# --- estimates --------------------------------------------------------------------------------------------------------


def estimate_of(G):
    """The Estimate of networks of the experiment with these kernels, in ten groups of two."""
    names = [average.name for average in recorded(control=False)[0]]
    g = G[..., *np.triu_indices(2)]
    x = np.concatenate([g if name in ("G", "S") else np.ones_like(g) for name in names], axis=-1)
    x = x.reshape(10, 2, *x.shape[1:])
    y = x[..., : 3 * recorded(control=False)[1]]
    sums = Sums.of(np.full(10, 2), x.sum(axis=1), np.einsum("gbtm,gbtn->gtmn", y, y), parts=10)
    K = np.asarray(pack(EXPERIMENT.K0)) * (1 + EPS**2 * 1.5) ** np.array(LAYERS)[:, None]
    limit = InfiniteWidth(K, K)
    return keft.Estimate.of(sums, limit, WIDTH, np.array(LAYERS), np.array(EPS), False, EXPERIMENT.model)


@pytest.fixture(scope="module")
def estimated():
    return estimate_of(draw())


def test_an_estimate_holds_what_its_kernels_hold(estimated):
    """Mean kernels and covariances; the mean of ten groups has a tenth of the covariance of one."""
    by_kernels, by_sums = (observe(data, EXPERIMENT, True) for data in (draw(), estimated))
    np.testing.assert_allclose(by_sums.statistics, by_kernels.statistics, rtol=1e-10)
    assert by_sums.networks == by_kernels.networks == NETWORKS
    of_groups = by_kernels.replicates.reshape(10, 2, -1).mean(axis=1)
    np.testing.assert_allclose(by_sums.replicates, of_groups, rtol=1e-9, atol=1e-12)
    means = np.eye(6, len(by_sums.statistics))
    np.testing.assert_allclose(by_sums.scatter(means), np.cov(of_groups[:, :6].T) / 10, rtol=1e-9)


def experiment_of(**changes):
    """The experiment of the estimate with other settings."""
    settings = {"model": EXPERIMENT.model, "K0": K0, "width": WIDTH, "layers": LAYERS, "eps": EPS} | changes
    return Experiment(settings.pop("model"), settings.pop("K0"), **settings)


@pytest.mark.parametrize(
    ("changes", "free", "words"),
    [
        ({"width": 64}, (), "with width = 32, the experiment holds it at 64"),
        ({"model": keft.Model(keft.Linear(), 1.4)}, (), r"with C_W = 1\.5, the experiment holds it at 1\.4"),
        ({"model": keft.Model(keft.Linear(), 1.5, 0.1)}, ("C_W",), r"with C_b = 0, the experiment holds it at 0\.1"),
        ({"model": keft.Model(keft.Erf(), 1.5)}, (), "networks of Model Linear.*, the experiment of Model Erf"),
        ({"eps": 0.3}, (), r"with eps = 0\.4 in layer 1, the experiment holds it at 0\.3"),
        ({"eps": [0.4, 0.4, 0.5]}, (), r"with eps = 0\.4 in layer 3, the experiment holds it at 0\.5"),
        (
            {"K0": 1.1 * K0},
            (),
            r"infinite width at layer 1 has entry \[0, 0\] = 1\.24, and the experiment's K0 gives 1\.364",
        ),
    ],
)
def test_an_estimate_of_other_networks_is_refused(estimated, changes, free, words):
    with pytest.raises(ValueError, match=words):
        check_same(estimated, experiment_of(**changes), free)


def test_what_is_free_may_start_elsewhere(estimated):
    """A parameter; one eps of all layers, which then must be one in the data; the scale of the inputs, but not their
    ratios. Of a model that the file does not hold only width, steps and inputs at layer zero are known."""
    check_same(estimated, EXPERIMENT, ())
    other = experiment_of(model=keft.Model(keft.Linear(), 1.2, 0.1), eps=0.3)
    check_same(estimated, other, ("C_W", "C_b", "eps"))
    steps = dataclasses.replace(estimated, eps=np.array([0.4, 0.4, 0.5]))
    with pytest.raises(ValueError, match=r"eps = 0\.5 in layer 3, the experiment has one eps in all layers"):
        check_same(steps, EXPERIMENT, ("eps",))
    no_model = dataclasses.replace(estimated, model=None)
    check_same(no_model, experiment_of(model=keft.Model(keft.Erf(), 2.0), K0=2 * K0), ())
    from_zero = dataclasses.replace(no_model, layers=np.array([0, 3]), K0=np.stack([3 * K0, K0]))
    check_same(from_zero, EXPERIMENT, ("K0_scale",))
    with pytest.raises(ValueError, match=r"at layer 0 has entry \[0, 0\] = 3, and the experiment's K0 gives 1"):
        check_same(from_zero, EXPERIMENT, ())
    with pytest.raises(ValueError, match="at layer 0 has entry"):
        check_same(from_zero, experiment_of(K0=np.eye(2)), ("K0_scale",))


def test_an_estimate_of_another_hidden_width_is_refused(estimated):
    """The ratios of matrices are no parameters, but networks depend on them."""
    two, one = (keft.Model([keft.Dense(1.0, ratio=ratio), keft.Linear(), keft.Dense(1.5)]) for ratio in (2, 1))
    with pytest.raises(ValueError, match=r"matrices have the ratios \[2, 1\], those of the experiment have \[1, 1\]"):
        check_same(dataclasses.replace(estimated, model=two), experiment_of(model=one), ())


def test_estimates_that_no_error_follows_from_are_refused(estimated):
    with pytest.raises(ValueError, match=r"has layers \(1, 3\) and 2 inputs, the experiment \(2, 4\) and 2"):
        observe(estimated, experiment_of(layers=[2, 4]), False)
    with pytest.raises(ValueError, match=r"has layers \(1, 3\) and 2 inputs, the experiment \(1, 3\) and 1"):
        observe(estimated, experiment_of(K0=K0[:1, :1]), False)
    with pytest.raises(ValueError, match="shows no scatter between its networks"):
        observe(estimate_of(np.tile(draw()[:2], (10, 1, 1, 1))), EXPERIMENT, False)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (EXPERIMENT.model, "must be kernels of sampled networks or an Estimate, but is a Model"),
        (draw()[:, 0], r"must be kernels of shape .*\(networks, 2, 2, 2\), or an Estimate, but has shape \(20, 2, 2\)"),
        (draw()[:4], "must hold 16 networks or more to show their scatter, but holds 4"),
    ],
)
def test_data_of_other_kinds_are_refused(data, words):
    with pytest.raises(ValueError, match=words):
        observe(data, EXPERIMENT, False)
