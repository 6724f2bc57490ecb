"""Kernels from files and arrays of users: what is read is what was saved, and each mistake gets a sentence with its
remedy."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import kernel_eft_jax as keft
from kernel_eft_jax.inference import Experiment, fit, fit_record, read_kernels
from kernel_eft_jax.inference.data import observe

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
