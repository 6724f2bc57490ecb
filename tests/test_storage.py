"""Results in files: what is written comes back bit for bit, opens in plain xarray, and a damaged file says so."""

from pathlib import Path

import diffrax
import jax
import numpy as np
import pytest
import xarray as xr

import kernel_eft_jax as keft
from kernel_eft_jax import storage
from kernel_eft_jax.ensemble import Estimate, estimate

K0 = np.array([[1.5, 0.4], [0.4, 1.0]])
MODEL = keft.Model(keft.Sin(), C_W=1.5, C_b=0.1)
TS = np.array([0.0, 0.25, 1.0])


@pytest.fixture(scope="module")
def results():
    """One of each kind: with and without truncation errors, with and without control variates."""
    sizes = {"width": 6, "depth": 4, "eps": 0.5, "networks": 70, "key": jax.random.key(1), "progress": False}
    return {
        "g-only": keft.solve(MODEL, K0, TS, closure=keft.GOnly(), eps=0.5),
        "tower": keft.solve(MODEL, K0[:1, :1], TS, closure=keft.HermiteTower(4), eps=0.5),
        "control": estimate(MODEL, K0, **sizes),
        "plain": estimate(MODEL, K0, **sizes, control=False, save_at=[0, 3]),
    }


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert [np.asarray(x).dtype for x in jax.tree.leaves(a)] == [np.asarray(x).dtype for x in jax.tree.leaves(b)]


@pytest.mark.parametrize("name", ["g-only", "tower", "control", "plain"])
def test_what_is_saved_comes_back_bit_for_bit(results, name, tmp_path):
    assert_same(storage.load(storage.save(results[name], tmp_path / "result.nc")), results[name])


def test_a_loaded_estimate_can_do_what_the_original_could(results, tmp_path):
    loaded = storage.load(storage.save(results["control"], tmp_path / "result.nc"))
    assert isinstance(loaded, Estimate)
    ratio = [e.jackknife(lambda q: q.V4[-1, 0, 0, 0, 0] / q.G[-1, 0, 0] ** 2) for e in (results["control"], loaded)]
    assert ratio[0] == ratio[1]


def test_a_solution_that_failed_keeps_saying_why(tmp_path):
    failed = keft.solve(MODEL, K0[:1, :1], TS, max_steps=1, throw=False)
    assert failed.result == diffrax.RESULTS.max_steps_reached
    loaded = storage.load(storage.save(failed, tmp_path / "result.nc"))
    assert isinstance(loaded, keft.Solution)
    assert loaded.result == diffrax.RESULTS.max_steps_reached


def test_the_file_speaks_for_itself_in_plain_xarray(results, tmp_path):
    path = storage.save(results["control"], tmp_path / "result.nc", model=MODEL, eps=0.5, seed=1, note="for a talk")
    with xr.open_dataset(path) as data:
        assert data["G"].dims == ("t", "a", "b")
        assert data["V4"].dims == data["V4_stderr"].dims == ("t", "a", "b", "c", "d")
        np.testing.assert_allclose(data["t"], 0.25 * np.arange(5))
        np.testing.assert_array_equal(data["V4"].sel(t=0.5, a=0, b=1, c=0, d=1), results["control"].V4[2, 0, 1, 0, 1])
        assert "Cov(G_ab, G_cd)" in data["V4"].attrs["long_name"]
        assert "standard error" in data["K1_stderr"].attrs["long_name"]
        assert {name: data.attrs[name] for name in ("eps", "seed", "note", "width", "networks")} == {
            "eps": 0.5,
            "seed": 1,
            "note": "for a talk",
            "width": 6,
            "networks": 70,
        }
        assert "Sin()" in data.attrs["model"]
        assert "1.5" in data.attrs["model"]
        assert data.attrs["version_jax"] == jax.__version__


def test_settings_of_every_kind_are_kept(results, tmp_path):
    settings = {
        "control": True,
        "sampler": None,
        "seed": np.int64(3),
        "C_W": np.float64(0.5),
        "layers": [0, 3],
        "empty": "",
        "key": jax.random.key(1),
    }
    path = storage.save(results["plain"], tmp_path / "result.nc", **settings)
    with xr.open_dataset(path) as data:
        kept = {name: data.attrs[name] for name in settings}
    assert "key<fry>" in kept.pop("key")
    assert kept == {"control": "True", "sampler": "None", "seed": 3, "C_W": 0.5, "layers": "[0, 3]", "empty": ""}
    assert_same(storage.load(path), results["plain"])


def test_settings_cannot_hide_what_the_file_needs(results, tmp_path):
    """Every attribute that a file has without settings."""
    for name, result in results.items():
        own = storage.to_dataset(result).attrs.keys()
        assert own >= (
            {"networks", "width", "parts"} if name in ("control", "plain") else {"result", "stats_num_steps"}
        )
        for setting in {*own, "stats_mine"} - {"result"}:  # which is the first argument of `save`
            with pytest.raises(ValueError, match=f"Argument `{setting}` has a name that the file itself uses"):
                storage.save(result, tmp_path / "result.nc", **{setting: 1})
    assert not any(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(results, tmp_path, monkeypatch):
    path = storage.save(results["g-only"], tmp_path / "result.nc")

    def interrupted(self, target, **options):
        Path(target).write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(xr.Dataset, "to_netcdf", interrupted)
    with pytest.raises(KeyboardInterrupt):
        storage.save(results["tower"], path)
    assert list(tmp_path.iterdir()) == [path]
    assert_same(storage.load(path), results["g-only"])


def test_damaged_and_foreign_files_are_named(results, tmp_path):
    path = storage.save(results["g-only"], tmp_path / "result.nc")
    cut, text, foreign, changed = (tmp_path / name for name in ("cut.nc", "text.nc", "foreign.nc", "changed.nc"))
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    text.write_text("t, K0\n")
    xr.Dataset({"V4": ("x", [1.0])}).to_netcdf(foreign, engine="h5netcdf")
    with xr.open_dataset(path) as data:
        data.drop_vars("V4").to_netcdf(changed, engine="h5netcdf")
    for file, says in (
        (cut, "cut short or of another format"),
        (text, "cut short or of another format"),
        (foreign, "not written by `save`"),
        (changed, "lacks V4"),
    ):
        with pytest.raises(ValueError, match=rf"{file.name}.*{says}"):
            storage.load(file)
    with pytest.raises(FileNotFoundError):
        storage.load(tmp_path / "nothing.nc")
