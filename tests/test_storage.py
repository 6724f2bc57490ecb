"""Results in files: what is written comes back bit for bit, with its model, opens in plain xarray, and a damaged file
says so."""

import functools
import inspect
import resource

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import kernel_eft_jax as keft
from kernel_eft_jax import storage
from kernel_eft_jax.ensemble import Estimate, estimate

K0 = np.array([[1.5, 0.4], [0.4, 1.0]])
MODEL = keft.Model(keft.Sin(), C_W=1.5, C_b=0.1)
LAYERS = {"layers": [0, 1, 4], "eps": 0.5}


@functools.cache
def result(name):
    """One of each kind: with and without truncation errors, with and without control variates."""
    sizes = {"width": 6, "depth": 4, "eps": 0.5, "networks": 70, "key": jax.random.key(1), "progress": False}
    make = {
        "g-only": lambda: keft.solve(MODEL, K0, closure=keft.GOnly(), **LAYERS),
        "tower": lambda: keft.solve(MODEL, K0[:1, :1], closure=keft.HermiteTower(4), **LAYERS),
        "control": lambda: estimate(MODEL, K0, **sizes),
        "plain": lambda: estimate(MODEL, K0, **sizes, control=False, save_at=[0, 3]),
    }
    return make[name]()


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert [np.asarray(x).dtype for x in jax.tree.leaves(a)] == [np.asarray(x).dtype for x in jax.tree.leaves(b)]


@pytest.mark.parametrize("name", ["g-only", "tower", "control", pytest.param("plain", marks=pytest.mark.thorough)])
def test_what_is_saved_comes_back_bit_for_bit(name, tmp_path):
    assert_same(storage.load(storage.save(result(name), tmp_path / "result.nc")), result(name))


def test_a_loaded_estimate_can_do_what_the_original_could(tmp_path):
    loaded = storage.load(storage.save(result("control"), tmp_path / "result.nc"))
    assert isinstance(loaded, Estimate)
    assert repr(loaded) == repr(result("control"))
    ratio = [e.jackknife(lambda q: q.V4[-1, 0, 0, 0, 0] / q.G[-1, 0, 0] ** 2) for e in (result("control"), loaded)]
    assert ratio[0] == ratio[1]


@pytest.mark.thorough
def test_a_solution_that_failed_keeps_saying_why(tmp_path):
    failed = keft.solve(MODEL, K0[:1, :1], 1.0, closure=keft.GOnly(), max_steps=1, throw=False)
    assert failed.result == diffrax.RESULTS.max_steps_reached
    loaded = storage.load(storage.save(failed, tmp_path / "result.nc"))
    assert isinstance(loaded, keft.Solution)
    assert loaded.result == diffrax.RESULTS.max_steps_reached


def test_the_file_speaks_for_itself_in_plain_xarray(tmp_path):
    path = result("control").save(tmp_path / "result.nc", seed=1, note="for a talk")
    with xr.open_dataset(path) as data:
        assert data["G"].dims == ("t", "a", "b")
        assert data["V4"].dims == data["V4_stderr"].dims == ("t", "a", "b", "c", "d")
        np.testing.assert_allclose(data["t"], 0.25 * np.arange(5))
        np.testing.assert_array_equal(data["V4"].sel(t=0.5, a=0, b=1, c=0, d=1), result("control").V4[2, 0, 1, 0, 1])
        assert "Cov(G_ab, G_cd)" in data["V4"].attrs["long_name"]
        assert "standard error" in data["K1_stderr"].attrs["long_name"]
        assert {name: data.attrs[name] for name in ("seed", "note", "width", "networks")} == {
            "seed": 1,
            "note": "for a talk",
            "width": 6,
            "networks": 70,
        }
        assert data["eps"] == 0.5
        assert '"Sin": {}' in data.attrs["model"]
        assert '"C_W": {"float64": 1.5}' in data.attrs["model"]
        assert data.attrs["version_jax"] == jax.__version__


@pytest.mark.parametrize("name", ["g-only", "tower", "control", pytest.param("plain", marks=pytest.mark.thorough)])
def test_axes_are_read_by_name(name, tmp_path):
    """Every variable transposed, as xarray does, and written again by another program."""
    path = tmp_path / "result.nc"
    reverse = result(name).to_xarray()
    reverse = reverse.transpose(*reversed(list(reverse.sizes)))
    assert reverse["V4"].dims[-1] == "t"
    reverse.to_netcdf(path, engine="h5netcdf")
    assert_same(storage.load(path), result(name))


@pytest.mark.parametrize("name", ["tower", pytest.param("control", marks=pytest.mark.thorough)])
def test_parts_of_a_result_get_a_sentence(name, tmp_path):
    data, path = result(name).to_xarray(), tmp_path / "part.nc"
    for part, says in (
        (data.isel(t=0), "It lacks the dimension t. Load the file"),
        (data.isel(b=0), "It lacks the dimension b. Load the file"),
        (data.isel(c=[0, 0]), "Its dimension c must hold all inputs in their order"),
        (data.assign(V4=data["K0"]), "Its variable V4 must have the dimensions t, a, b, c, d, but has t, a, b"),
        (data.drop_attrs().assign_attrs({storage.labels.KIND: data.attrs[storage.labels.KIND]}), "KeyError"),
    ):
        part.to_netcdf(path, engine="h5netcdf")
        with pytest.raises(ValueError, match=rf"part\.nc was changed since `save` wrote it\. .*{says}"):
            storage.load(path)
    if name == "control":
        shallow = data.isel(t=[0, 2])
        shallow.to_netcdf(path, engine="h5netcdf")
        np.testing.assert_array_equal(storage.load(path).V4, result(name).V4[[0, 2]])


# --- what made a result -------------------------------------------------------------------------------------------


def same_module(a, b):
    assert type(a) is type(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_array_equal(x, y)


def test_a_saved_result_rebuilds_its_model(tmp_path):
    loaded = storage.load(storage.save(result("control"), tmp_path / "result.nc"))
    same_module(loaded.model, MODEL)
    assert isinstance(loaded.sampler, keft.BlockSampler)
    assert (loaded.width, loaded.eps.item()) == (6, 0.5)
    again = estimate(
        loaded.model,
        K0,
        width=loaded.width,
        depth=4,
        eps=loaded.eps.item(),
        networks=loaded.networks,
        key=loaded.key,
        sampler=loaded.sampler,
        progress=False,
    )
    np.testing.assert_array_equal(again.V4, result("control").V4)


def every_module():
    """An object of every public class of this package that is made of its own arguments, with numbers no decimal
    holds."""
    third = jnp.float32(1) / 3
    arguments = {
        "Polynomial": (jnp.array([0.1, third, -2e-300], jnp.float64),),
        "Softplus": (third,),
        "LeakyReLU": (jnp.float64(np.pi),),
        "Scaled": (keft.Scaled(keft.LeakyReLU(third), 1 / 3), np.nextafter(1, 2), -1e308),
        "Model": (keft.Softplus(np.nextafter(2, 3)), third, 1e-320),
        "Dense": (third, 1e-320),
        "GLU": (keft.Softplus(third),),
    }
    for name in dir(keft):
        kind = getattr(keft, name)
        if not (isinstance(kind, type) and issubclass(kind, eqx.Module)) or inspect.isabstract(kind):
            continue
        parameters = inspect.signature(kind).parameters.values()
        if name in arguments or all(p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in parameters):
            yield pytest.param(kind(*arguments.get(name, ())), id=name)


@pytest.mark.parametrize("module", list(every_module()))
def test_modules_are_rebuilt_to_the_last_bit(module):
    same_module(storage.rebuild(storage.describe(module)), module)


def test_keys_arrays_and_nests_are_rebuilt():
    for impl in ("threefry2x32", "rbg"):
        key = jax.random.key(7, impl=impl)
        again = storage.rebuild(storage.describe(key))
        assert jax.random.key_impl(again) == jax.random.key_impl(key)
        np.testing.assert_array_equal(jax.random.key_data(again), jax.random.key_data(key))
    nest = (None, True, 3, "x", 0.1, [1, (2.5,)])
    assert storage.rebuild(storage.describe(nest)) == nest
    same_module(storage.rebuild(storage.describe(jnp.arange(3, dtype=jnp.bfloat16))), jnp.arange(3, dtype=jnp.bfloat16))


@pytest.mark.thorough
def test_a_function_of_ones_own_is_named_and_not_rebuilt(tmp_path):
    """A file of networks whose function it cannot hold is read without the model."""
    model = keft.Model(keft.Smooth(jnp.tanh), 2.0)
    result = estimate(
        model, K0, width=4, depth=2, eps=0.3, networks=64, key=jax.random.key(0), control=False, progress=False
    )
    path = result.save(tmp_path / "result.nc")
    assert storage.load(path).model is None


def test_other_things_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="`result` must be a Solution, a PairSolution or an Estimate, but is 'V4'"):
        storage.save("V4", tmp_path / "result.nc")


def test_numbers_of_numpy_are_numbers():
    assert storage.rebuild(storage.describe((np.float64(0.5), np.int32(3)))) == (0.5, 3)


def test_what_a_file_cannot_hold_is_not_rebuilt():
    """A function is named only. No file runs code: what it names must be a module of this package."""
    with pytest.raises(ValueError, match=r"holds the name of a function, .*: build the model again and pass it"):
        storage.rebuild(storage.describe(keft.Model(keft.Smooth(jnp.tanh), 2.0)))
    for text in ('{"os.system": {}}', '{"solve": {}}', '{"Tomorrow": {}}'):
        with pytest.raises(ValueError, match="which this version of the package does not have"):
            storage.rebuild(text)


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_settings_of_every_kind_are_kept(tmp_path):
    settings = {
        "quiet": True,
        "nothing": None,
        "seed": np.int64(3),
        "C_W": np.float64(0.5),
        "layers": [0, 3],
        "empty": "",
        "large": 2**64,
        "second key": jax.random.key(1),
        "closure": keft.HermiteTower(3),
    }
    path = storage.save(result("plain"), tmp_path / "result.nc", **settings)
    with xr.open_dataset(path) as data:
        kept = {name: data.attrs[name] for name in settings}
    assert kept == {
        "quiet": "True",
        "nothing": "None",
        "seed": 3,
        "C_W": 0.5,
        "layers": "[0, 3]",
        "empty": "",
        "large": "18446744073709551616",
        "second key": '{"key": {"threefry2x32": [0, 1]}}',
        "closure": '{"HermiteTower": {"degree": 3}}',
    }
    assert_same(storage.load(path), result("plain"))


def test_settings_cannot_hide_what_the_file_needs(tmp_path):
    """Every attribute that a file has without settings."""
    origin = {"networks", "width", "parts", "model", "sampler", "key"}
    for name, expected in (("g-only", {"result", "stats_num_steps"}), ("control", origin)):
        own = result(name).to_xarray().attrs.keys()
        assert own >= expected
        for setting in {*own, "stats_mine"} - {"result"}:  # which is the first argument of `save`
            with pytest.raises(ValueError, match=f"Argument `{setting}` has a name that the file itself uses"):
                storage.save(result(name), tmp_path / "result.nc", **{setting: 1})
    assert not any(tmp_path.iterdir())


# --- faults -------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_file_and_a_sentence(tmp_path):
    """HDF5 itself ends the process there, so that it never writes to a disk."""
    path = storage.save(result("g-only"), tmp_path / "result.nc")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(
            OSError, match=r"Nothing was written, because the disk .* full; the file that was there is unchanged"
        ):
            storage.save(result("control"), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == [path]
    assert_same(storage.load(path), result("g-only"))


@pytest.mark.parametrize("name", ["tower", "control"])
def test_single_flipped_bits_are_seen(name, tmp_path):
    """300 of a file's bits, one at a time: none is read."""
    path = storage.save(result(name), tmp_path / "result.nc")
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for bit in rng.choice(8 * len(whole), 300, replace=False):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is damaged|cannot be read|was changed|holds no result|lacks"):
            storage.load(path)


def test_a_file_that_lost_its_end_or_got_a_longer_one_is_refused(tmp_path):
    path = storage.save(result("g-only"), tmp_path / "result.nc")
    whole, seal = path.read_bytes(), len(storage.results.SEAL) + 64
    cut = (*(whole[:-n] for n in (1, 20, seal - 1, seal + 1)), whole[:8], whole[:20])
    for damaged in (*cut, whole + b"\n", whole + whole):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is damaged|cannot be read"):
            storage.load(path)


def test_a_file_without_a_seal_is_read_as_that_of_another_program(tmp_path):
    path = storage.save(result("g-only"), tmp_path / "result.nc")
    path.write_bytes(path.read_bytes()[: -len(storage.results.SEAL) - 64])
    assert_same(storage.load(path), result("g-only"))


def test_damaged_and_foreign_files_are_named(tmp_path):
    path = storage.save(result("g-only"), tmp_path / "result.nc")
    cut, text, foreign, changed, flipped = (
        tmp_path / f"{name}.nc" for name in ("cut", "text", "foreign", "changed", "flipped")
    )
    flipped.write_bytes(path.read_bytes().replace(b"GOnly", b"GOnlx").replace(b"mean kernel", b"mean kernfl"))
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    text.write_text("t, K0\n")
    xr.Dataset({"V4": ("x", [1.0])}).to_netcdf(foreign, engine="h5netcdf")
    with xr.open_dataset(path) as data:
        data.drop_vars("V4").to_netcdf(changed, engine="h5netcdf")
    for file, says in (
        (cut, "cut short or of another format"),
        (text, "cut short or of another format"),
        (flipped, "is damaged"),
        (foreign, "not written by `save`"),
        (changed, "lacks V4"),
    ):
        with pytest.raises(ValueError, match=rf"{file.name}.*{says}"):
            storage.load(file)
    with pytest.raises(FileNotFoundError):
        storage.load(tmp_path / "nothing.nc")
