"""Long runs: the same bits on any number of devices and processes, after any interruption, and only as many networks as
a target needs.

Runs that are killed, or have several devices or processes, happen in processes of their own, which print a digest of
all their results.
"""

import functools
import io
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tqdm import tqdm
from workers import (
    LONG,
    PAIR,
    ROOT,
    SHORT,
    compiled_alike,
    digest,
    finish,
    free_port,
    of_one_draw,
    start_worker,
    worker_lines,
)

from kernel_eft_jax.activations import Erf, Smooth
from kernel_eft_jax.ensemble import BlockSampler, estimate, plan, processes, run, sample_kernels
from kernel_eft_jax.ensemble.checkpoint import Checkpoint
from kernel_eft_jax.ensemble.simulate import Problem
from kernel_eft_jax.ensemble.statistics import GROUPS, CentredSums, Sums
from kernel_eft_jax.model import Model


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Start a worker."""
    return functools.partial(start_worker, cache=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def pair(start, tmp_path_factory):
    """What two processes of four devices each print of three runs that they share, and the folders of the checkpoints:
    one that differs in its arguments, one where the checkpoint of process 1 is broken, and one where all is well."""
    broken, whole = (tmp_path_factory.mktemp(name) for name in ("broken", "whole"))
    (broken / "run.1").write_bytes(b"not a checkpoint")
    runs = [SHORT | {"checkpoint": str(broken / "run")}, SHORT | {"wanted": 1e-9, "checkpoint": str(whole / "run")}]
    address = f"localhost:{free_port()}"
    workers = [start([address, p, [SHORT | {"width": 8 + p, "seed": p}, *runs]], devices=4, code=PAIR) for p in (0, 1)]
    lines = [worker_lines(worker)[-len(runs) - 1 :] for worker in workers]  # libraries print lines of their own before
    return list(zip(*lines, strict=True)), whole


@pytest.fixture
def one_of_three(monkeypatch):
    """This process is one of three; a list of what it sends, and of what is answered for all of them."""
    sent, answers = [], []

    def gather(array):
        sent.append(array.tolist())
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return np.stack([array, *np.asarray(answer, array.dtype)])

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(processes, "_gather", gather)
    monkeypatch.setattr(processes._Meeting, "on", False)
    return sent, answers


STOP = [processes.STOPS]
GO = [processes.GOES_ON]


def test_a_process_goes_on_if_all_do(one_of_three):
    _, answers = one_of_three
    answers += [[GO, GO], [GO, STOP], RuntimeError("gone")]
    processes.meet()
    with pytest.raises(processes.Stopped, match="because process 2 failed or was interrupted"):
        processes.meet()
    with pytest.raises(processes.Stopped, match="Another process of the run has ended"):
        processes.meet()


def test_a_process_that_fails_says_so_once(one_of_three):
    """It sends one word, which stops the others. It sends none if it failed because it was stopped itself."""
    sent, answers = one_of_three

    @processes.together
    def work(fault):
        if fault:
            raise fault
        return processes.across(np.array([7.0]))

    answers += [[GO, GO], [[8.0], [9.0]], [GO, GO]]
    np.testing.assert_array_equal(work(None), [[7.0], [8.0], [9.0]])
    assert sent == [GO, [7.0], GO]
    sent.clear()
    answers.append([STOP, STOP])
    with pytest.raises(KeyboardInterrupt):
        work(KeyboardInterrupt())
    assert sent == [STOP]
    sent.clear()
    answers.append([STOP, GO])
    with pytest.raises(processes.Stopped, match="because process 1 failed"):
        work(None)
    assert sent == [GO]


def test_settings_that_differ_are_named(one_of_three, monkeypatch):
    settings = {"width": 8, "key": [0, 1]}
    _, answers = one_of_three
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(processes, "across", lambda array: seen.append(array) or array[None])
        processes.check_alike(settings)
        processes.check_alike(settings | {"width": 9})
    answers += [[GO, GO], [seen[0], seen[0]], [GO, GO], [seen[1], seen[0]]]
    processes.check_alike(settings)
    with pytest.raises(ValueError, match=r"processes of this run differ in `width` \(here 8\): start all"):
        processes.check_alike(settings)


def test_all_digits_are_gathered(monkeypatch):
    """64 bits travel as two words of 32."""

    def gather(words):
        assert words.dtype == np.uint32
        return np.stack([words, words])

    monkeypatch.setattr(processes.multihost_utils, "process_allgather", gather)
    numbers = np.array([np.pi, 1e-300])
    np.testing.assert_array_equal(processes._gather(numbers), [numbers, numbers])


@pytest.mark.thorough
def test_processes_that_differ_stop_with_a_sentence(pair):
    """Processes with different arguments stop with an error, instead of mixing two runs."""
    said = r"ValueError: The processes of this run differ in `width` \(here [89]\), `key` \(here .*\): start all of them with the same"
    assert all(re.search(said, line) for line in pair[0][0]), pair[0]


@pytest.mark.thorough
def test_a_process_that_fails_stops_the_others(pair):
    """If one process fails (its checkpoint is broken), all processes stop."""
    first, second = pair[0][1]
    assert first.startswith(
        "Stopped: The run stopped here because process 1 failed or was interrupted: its own error says why"
    )
    assert "is truncated or not a checkpoint" in second


@pytest.mark.thorough
def test_same_bits_on_any_number_of_devices_and_processes(pair):
    """Two processes of four devices, and this one."""
    (lines, folder) = pair
    results = {digest(**SHORT, wanted=1e-9), *lines[2]}
    assert len(results) == 1
    assert results.pop().endswith(" 3333")
    assert sorted(path.name for path in folder.iterdir()) == ["run.0", "run.1"]


@pytest.mark.slow
def test_same_bits_on_1_2_4_8_devices_and_4_processes(start):
    results = {finish(start(LONG, devices=devices)) for devices in (1, 2, 4, 8)}
    address = f"localhost:{free_port()}"
    results |= {finish(w) for w in [start(LONG | {"process": [address, 4, process]}) for process in range(4)]}
    assert len(results) == 1


SINGLE = """
import sys
import numpy as np
from tests.workers import of_one_draw
np.savez(sys.argv[1], *of_one_draw())
"""


@pytest.mark.thorough
def test_networks_are_float32_with_and_without_x64(tmp_path):
    """Networks differ by no bit, statistics by the float32 rounding of the theory."""
    command = [sys.executable, "-c", SINGLE, str(tmp_path / "without.npz")]
    subprocess.run(command, env=os.environ | compiled_alike() | {"JAX_ENABLE_X64": "0"}, cwd=ROOT, check=True)
    with np.load(tmp_path / "without.npz") as file:
        G, K0, K1 = file.values()
    G64, K0_64, K1_64 = of_one_draw()
    assert np.array_equal(G, G64)
    assert G.dtype == np.float32
    assert np.allclose(K0, K0_64, rtol=1e-5)
    assert not np.array_equal(K0, K0_64)
    assert np.allclose(K1, K1_64, atol=1e-3)
    assert K1.dtype == K1_64.dtype == np.float64


def run_with_kills(start, monkeypatch, path, settings, kills, seed):
    """Run to the end through kills -9: one once there is a file, the others at any moment of starting and going on.

    What the file holds never falls, and at the end only the other blocks are computed, in this process.
    """
    rng, held, begin = np.random.default_rng(seed), 0, 0.0
    settings = settings | {"checkpoint": str(path)}
    for kill in range(kills):
        worker = start(settings | {"pause": 0.03, "checkpoint_seconds": 0.0})
        assert worker.stdout.readline() == "ready\n"
        before = time.monotonic()
        if kill == 0:
            while not path.exists() and worker.poll() is None:
                time.sleep(0.01)
            begin = time.monotonic() - before
            time.sleep(rng.uniform(0, 1))
            assert worker.poll() is None, "the run ended before it was killed: make it longer"
        else:
            time.sleep(rng.uniform(0, 2 * begin))
        worker.kill()
        worker.communicate()
        assert networks_in(path) >= held
        held = networks_in(path)
    assert 0 < held < settings["networks"]
    blocks = record_blocks(monkeypatch)
    result = digest(**settings)
    with np.load(path) as file:
        assert blocks == list(range(held // file["size"], -(-settings["networks"] // file["size"])))
    return result


def networks_in(path):
    with np.load(path) as file:
        return file["count"].sum()


def record_blocks(monkeypatch):
    """The numbers of the blocks that runs from now on compute."""
    numbers, block_sums = [], run.block_sums

    def recorded(problem, key, plan, blocks):
        numbers.extend(blocks)
        yield from block_sums(problem, key, plan, blocks)

    monkeypatch.setattr(run, "block_sums", recorded)
    return numbers


@pytest.mark.thorough
def test_killed_and_resumed_runs_give_the_same_bits(start, tmp_path, monkeypatch):
    assert run_with_kills(start, monkeypatch, tmp_path / "run.npz", SHORT, kills=1, seed=0) == digest(**SHORT)


@pytest.mark.slow
def test_twenty_kills(start, tmp_path, monkeypatch):
    long = LONG | {"networks": 3_000_000}
    assert run_with_kills(start, monkeypatch, tmp_path / "run.npz", long, kills=20, seed=1) == digest(**long)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_passes_on(start, tmp_path, number):
    """A process of its own; in the fast tier SIGTERM stops a run of this process, in the next test."""
    path = tmp_path / "run.npz"
    worker = start(SHORT | {"pause": 0.1, "checkpoint": str(path), "checkpoint_seconds": 0.2})
    while not path.exists() and worker.poll() is None:
        time.sleep(0.05)
    first = path.stat().st_mtime_ns
    worker.send_signal(number)
    _, err = worker.communicate(timeout=300)
    assert worker.returncode != 0
    assert "KeyboardInterrupt: Stopped; the same call goes on from" in err
    assert path.stat().st_mtime_ns > first
    assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]
    with np.load(path) as file:
        assert 0 < file["count"].sum() < SHORT["networks"]


def small(key, path=None, networks=640, width=4, activation=None, control=True, progress=False, **settings):
    K0 = jnp.array([[2.0]])
    return estimate(
        Model(activation or Erf(), 2.0),
        K0,
        width=width,
        eps=0.3,
        networks=networks,
        key=key,
        control=control,
        checkpoint=path,
        progress=progress,
        **{"depth": 3, "save_at": [3]} | settings,
    )


def same(first, second):
    leaves = zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
    return all(np.array_equal(a, b) for a, b in leaves)


def test_an_interrupted_run_goes_on_where_it_was(key, tmp_path, monkeypatch):
    """Interrupted by SIGTERM after three blocks, and again while it waits for blocks under way: these three are kept,
    and never computed again. Interrupted once, the run says how to go on."""
    path, original, arrived = tmp_path / "run.npz", run.block_sums, []

    def impatient(*args):
        try:
            yield from original(*args)
        finally:
            raise KeyboardInterrupt

    def interrupt(file):
        arrived.append(file)
        if len(arrived) == 3:
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            signal.raise_signal(signal.SIGTERM)
        return False

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "is_due", interrupt)
        with pytest.raises(KeyboardInterrupt, match="Stopped; the same call goes on from"):
            small(key, tmp_path / "once.npz")
        assert 3 * 8 <= networks_in(tmp_path / "once.npz") < 640
        arrived.clear()
        patch.setattr(run, "block_sums", impatient)
        with pytest.raises(KeyboardInterrupt):
            small(key, path)
    assert networks_in(path) == 3 * 8
    assert sorted(file.name for file in tmp_path.iterdir()) == ["once.npz", "run.npz"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    blocks = record_blocks(monkeypatch)
    est = small(key, path)
    assert blocks == list(range(3, 80))
    assert same(est, small(key))
    blocks.clear()
    assert same(est, small(key, path))
    assert blocks == []


def test_a_run_ends_at_the_first_look_that_finds_its_target(key):
    """80 blocks of 8 networks; the first look is behind GROUPS blocks. A target that is never met ends nothing."""
    networks = [small(key, target=(lambda q: q.G[-1, 0, 0], wanted)).networks for wanted in (1e9, 1e-9)]
    assert networks == [8 * GROUPS, 640]


@pytest.mark.thorough
def test_a_run_can_be_extended(key, tmp_path, monkeypatch):
    """From 644 networks, which end within a block of 8, to 1000: the same bits as at once. To 1280, which at once has
    blocks of 16: to rounding."""
    path = tmp_path / "run.npz"
    small(key, path, networks=644)
    blocks = record_blocks(monkeypatch)
    est = small(key, path, networks=1000)
    assert blocks == list(range(80, 125))
    assert same(est, small(key, networks=1000))
    est, at_once = small(key, path, networks=1280), small(key, networks=1280)
    assert (est.networks, len(est.sums.groups)) == (1280, len(at_once.sums.groups))
    assert np.allclose(est.G, at_once.G, rtol=1e-6)
    assert np.allclose(est.V4, at_once.V4, rtol=1e-5)
    assert np.allclose(est.K1, at_once.K1, atol=1e-4)
    with pytest.raises(ValueError, match="`networks` must be 1280 or more to go on from the checkpoint"):
        small(key, path, networks=1279)


def test_foreign_and_broken_checkpoints_are_refused(key, tmp_path):
    path = tmp_path / "run.npz"
    small(key, path)
    with pytest.raises(ValueError, match="belongs to another run: width is 4 there and 5 here"):
        small(key, path, width=5)
    with pytest.raises(ValueError, match="belongs to another run: key is"):
        small(jax.random.key(0), path)
    with pytest.raises(ValueError, match=r"another run: .*control is True there and False here"):
        small(key, path, control=False)
    whole, middle = path.read_bytes(), path.stat().st_size // 2
    array, foreign, text, empty = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(array, np.arange(3.0))
    np.savez(empty, settings="{}")
    with np.load(path) as file:
        np.savez(foreign, **(dict(file) | {"settings": "eps = 0.1"}))
        np.savez(text, **(dict(file) | {"settings": "3"}))
    cut = [whole[:length] for length in (0, 10, middle, len(whole) - 1)]
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    for broken in [*cut, flipped, *(file.getvalue() for file in (array, foreign, text, empty))]:
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"run\.npz is truncated or not a checkpoint .* Delete it"):
            small(key, path)


def test_a_checkpoint_that_cannot_be_read_is_not_called_broken(key, tmp_path, monkeypatch):
    """A checkpoint that cannot be read is neither called broken nor touched, since it may hold the work of days."""
    path = tmp_path / "run.npz"
    small(key, path)
    before = path.read_bytes()

    def refuse(*args, **options):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(np, "load", refuse)
        with pytest.raises(PermissionError, match=r"Permission denied: '.*run\.npz'"):
            small(key, path)
    assert path.read_bytes() == before


def test_another_number_of_processes_is_noticed(key, tmp_path, monkeypatch):
    """Each process has a file."""
    one, two = tmp_path / "one", tmp_path / "two"
    small(key, one)
    (tmp_path / "two.0").write_bytes(one.read_bytes())
    with pytest.raises(ValueError, match=r"two\.0 is of a run with another number of processes than 1"):
        small(key, two)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "process_count", lambda: 2)
        with pytest.raises(ValueError, match="one is of a run with another number of processes than 2"):
            Checkpoint(one, {}, 60.0).load()


@pytest.mark.thorough
def test_checkpoint_of_another_activation_is_refused(key, tmp_path):
    """A checkpoint of another activation is refused. Functions have no lasting names: a model is recognised by its
    values, large arguments included."""
    tanh, other = (Smooth(f) for f in (jnp.tanh, lambda x: jnp.where(jnp.abs(x) < 20, jnp.tanh(x), 2 * jnp.sign(x))))
    est = small(key, tmp_path / "run", activation=tanh, control=False)
    assert same(est.G, small(key, tmp_path / "run", activation=tanh, control=False).G)
    with pytest.raises(ValueError, match="another run: model and inputs is"):
        small(key, tmp_path / "run", activation=other, control=False)


def test_an_edited_checkpoint_is_refused(key, tmp_path):
    """An edited checkpoint is refused: another size of blocks, other counts, or one other number would each give a
    wrong result."""
    path = tmp_path / "run.npz"
    small(key, path)
    with np.load(path) as file:
        whole = dict(file)
    for name, value in (
        ("size", np.array(3)),
        ("parts", np.array(1)),
        ("count", 2 * whole["count"]),
        ("first", 1.5 * whole["first"]),
    ):
        np.savez(path, **(whole | {name: value}))
        with pytest.raises(ValueError, match=r"not a checkpoint \(its numbers are not those that a run wrote\)"):
            small(key, path)
    np.savez(path, **whole)
    assert small(key, path).networks == 640


def test_two_runs_on_one_checkpoint(key, tmp_path, monkeypatch):
    """While one run holds a checkpoint, a second run on it is refused, and the first completes."""
    path, refused = tmp_path / "run.npz", []

    def second(file):
        if not refused:
            with pytest.raises(
                ValueError, match=rf"run\.npz is in use by process {os.getpid()} on .*: wait until"
            ) as error:
                small(key, path)
            refused.append(error)
        return True

    monkeypatch.setattr(Checkpoint, "is_due", second)
    est = small(key, path)
    assert len(refused) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]
    assert same(est, small(key))
    assert same(est, small(key, path))


def test_a_checkpoint_is_written_through_a_link(key, tmp_path):
    (tmp_path / "run.npz").symlink_to("scratch.npz")
    est = small(key, tmp_path / "run.npz")
    assert (tmp_path / "run.npz").is_symlink()
    assert networks_in(tmp_path / "scratch.npz") == 640
    assert same(est, small(key, str(tmp_path / "run.npz")))


@pytest.mark.parametrize("fault", ["full disk", "folder removed"])
def test_a_run_outlives_its_checkpoint(fault, key, tmp_path, monkeypatch):
    """The disk fills after ten blocks, or the folder goes: one warning, and the result of all networks."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    blocks, before = [], resource.getrlimit(resource.RLIMIT_FSIZE)

    def is_due(file):
        blocks.append(file)
        if len(blocks) == 10 and fault == "full disk":
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        elif len(blocks) == 10:
            shutil.rmtree(folder)
        return True

    monkeypatch.setattr(Checkpoint, "is_due", is_due)
    try:
        with pytest.warns(RuntimeWarning, match=r"The checkpoint cannot be written: .*\. The run goes on") as warned:
            est = small(key, folder / "run.npz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(warned) == 1
    assert same(est, small(key))
    if fault == "full disk":
        assert networks_in(folder / "run.npz") == 9 * 8


def test_numpy_numbers_are_sizes(key, tmp_path):
    est = small(key, tmp_path / "run.npz", networks=np.int64(640), width=np.int32(4))
    assert same(est, small(key, tmp_path / "run.npz"))
    assert (type(est.networks), type(est.width)) == (int, int)


def test_arguments_that_are_none(key):
    """A wrong argument is named, with what would be right; no error comes from inside JAX."""
    run = {"model": Model(Erf(), 2.0), "K0": np.eye(1), "width": 4, "depth": 2, "eps": 0.1, "networks": 64, "key": key}
    for change, error, says in (
        ({"key": 0}, ValueError, r"Argument `key` must be one key such as `jax\.random\.key\(0\)`, but is 0"),
        ({"model": None}, ValueError, "Argument `model` must be a Model object, but is None"),
        ({"sampler": "block"}, ValueError, "Argument `sampler` must be a Sampler object, but is 'block'"),
        ({"sampler": BlockSampler}, ValueError, r"write BlockSampler\(\)"),
        ({"eps": "0.1"}, ValueError, "Argument `eps` must be numbers, but is '0.1'"),
        ({"depth": 10**20}, ValueError, "Argument `depth` must be a whole number"),
        (
            {"K0": [[1e-20]]},
            ValueError,
            r"variances from 1e-12 to 1e\+12 .* entry \[0, 0\] is 1e-20: multiply the inputs",
        ),
        ({"K0": np.diag([1.0, 1e15])}, ValueError, r"entry \[1, 1\] is 1e\+15"),
    ):
        for function in (estimate, sample_kernels):
            with pytest.raises(error, match=says):
                function(**(run | change))
    for function in (estimate, sample_kernels):
        with (
            jax.disable_jit(),
            pytest.raises(ValueError, match=f"`{function.__name__}` is compiled, and JAX_DISABLE_JIT"),
        ):
            function(**run)
        for traced in (jax.jit, jax.grad, jax.vmap):
            with pytest.raises(
                TypeError, match=f"`{function.__name__}` cannot be traced by jit, grad or vmap: it runs a whole"
            ):
                traced(lambda x, f=function: f(**(run | {"K0": x * np.eye(1)})))(
                    np.ones(3 if traced is jax.vmap else ())
                )


def test_a_checkpoint_that_cannot_be_written_is_refused_before_the_run(key, tmp_path):
    with pytest.raises(ValueError, match="`checkpoint` must name a file"):
        small(key, tmp_path / "nowhere" / "run.npz")
    with pytest.raises(ValueError, match="`checkpoint` must name a file"):
        small(key, tmp_path / ("x" * 300))
    with pytest.raises(ValueError, match="`checkpoint` must be the name of a file, but is 3"):
        small(key, 3)
    for seconds in ("abc", -1, float("nan")):
        with pytest.raises(ValueError, match="`checkpoint_seconds` must be a number"):
            small(key, tmp_path / "run.npz", checkpoint_seconds=seconds)


@pytest.mark.parametrize(
    "networks",
    [
        pytest.param(64, marks=pytest.mark.thorough),
        pytest.param(1000, marks=pytest.mark.slow),
        pytest.param(20_000, marks=pytest.mark.thorough),
    ],
)
def test_the_division_of_a_run_does_not_show(networks, key, monkeypatch):
    """On an accelerator blocks are large and few: the same statistics to rounding, and errors from 32 groups at least
    as well."""
    on_cpu = small(key, networks=networks, control=False)
    monkeypatch.setattr(plan, "_on_cpu", lambda: False)
    large = small(key, networks=networks, control=False)
    for est in (on_cpu, large):
        assert sum(group.networks > 0 for group in est.sums.groups) >= 32
        assert sum(group.networks for group in est.sums.groups) == est.networks == networks
    assert np.allclose(large.G, on_cpu.G, rtol=1e-6)
    assert np.allclose(large.V4, on_cpu.V4, rtol=1e-5)
    assert 0.5 < large.stderr.K1[0, 0, 0] / on_cpu.stderr.K1[0, 0, 0] < 2


@pytest.mark.thorough
def test_target_stops_the_run_where_it_said(key, capsys, monkeypatch):
    """The error falls like one over the root of the number of networks, and the run ends as soon as it is small enough.

    256 groups tell an error to 4.4 %, and the number of networks to 9 %: it is within 40 % of a quarter for half the
    error, three standard errors, and the 10 % between two looks: false alarm 1e-3. What is told first, from 32 groups
    or more, is to 25 %: within a factor 2.5.
    """
    monkeypatch.setattr(plan, "block_size", lambda problem, networks: 32)
    full = small(key, networks=25_000, width=16, control=False)
    wanted = 2 * full.stderr.K1[-1, 0, 0]
    est = small(key, networks=25_000, width=16, control=False, target=(lambda q: q.K1[-1, 0, 0], wanted), progress=True)
    assert est.stderr.K1[-1, 0, 0] <= wanted
    told = re.search(r"needs about ([\d,]+) \(to \d+%\): [\d,]+ more networks take \d", capsys.readouterr().err)
    assert told is not None
    assert 0.6 * 6250 < est.networks < 1.4 * 6250
    assert 0.4 < est.networks / int(told[1].replace(",", "")) < 2.5
    for wanted in (1e-9, 1e-300):
        assert (
            small(key, networks=1000, control=False, target=(lambda q: q.V4[-1, 0, 0, 0, 0], wanted)).networks == 1000
        )


def at_target(wanted, capsys, function=lambda total: total.first.sum() / total.networks):
    """Whether a run ends, the length of its bar, and what is said, of a mean over 50 groups of 10 networks each whose
    standard error is one tenth."""
    x = np.random.default_rng(0).standard_normal(50)
    x = 0.1 * np.sqrt(50) * (x - x.mean()) / x.std(ddof=1)
    sums = Sums.of(np.full(50, 10), 10 * x[:, None, None], np.zeros((50, 1, 1, 1)), 50)
    division = plan.Plan(10_000, 16, 1, 1, 1, 1, 0)
    with tqdm(file=io.StringIO()) as bar:
        end = run.reached((function, wanted), sums, division, [64, 128, 256], bar, 0.5)
        return end, bar.total, capsys.readouterr().err


def test_a_target_says_how_many_networks_it_needs(capsys):
    """The error falls like one over the root of the number of networks: half of it needs four times as many, and the
    run ends at the first look behind them. 50 groups tell this number to 20 %."""
    assert at_target(0.11, capsys) == (True, 500, "")
    end, total, said = at_target(0.05, capsys)
    assert (end, total) == (False, 2048)
    assert "error 0.1 after 500 networks, 0.05 needs about 2,000 (to 20%): 1,548 more networks take 12:54" in said
    end, total, said = at_target(0.01, capsys)
    assert (end, total) == (False, 10_000)
    assert "it will be about 0.0224 when `networks` ends the run" in said
    with pytest.raises(ValueError, match="`target` has standard error nan after 500 networks"):
        at_target(0.1, capsys, lambda total: np.nan)


@pytest.mark.parametrize(("part", "at"), [("centre", (1, 1)), ("second", (1, 1, 1))])
def test_networks_that_turn_non_finite_are_named(part, at):
    """G_01 at the second saved depth, of the block that begins with network 40."""
    moments = CentredSums(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 3, 3)))
    getattr(moments, part)[at] = np.inf
    one = jnp.ones(1, jnp.float32)
    problem = Problem(Model(Erf(), 2.0), BlockSampler(), jnp.eye(2), one, one, jnp.array([3, 7]), None, 8)
    with pytest.raises(FloatingPointError, match=r"entry \[0, 1\] of G at layer 7, in the .* from number 40 on"):
        run.check_finite(moments, problem, 40)


@pytest.mark.thorough
def test_what_is_told_before_a_run_is_what_it_takes(key, monkeypatch, capsys):
    """A block takes 0.2 s for what it saves and 2 ms a layer, by a clock of the test's own, and the first 60 s more, to
    compile.

    Time is told to 10 %, with the memory, and once; a target may end the run before.
    """
    now, original, depth = [0.0], run.block_sums, 300

    def timed(problem, key, plan, blocks):
        now[0] += 60 * (now[0] == 0)
        for computed in original(problem, key, plan, blocks):
            now[0] += 0.2 + 0.002 * int(problem.layers[-1])
            yield computed

    monkeypatch.setattr(run, "block_sums", timed)
    monkeypatch.setattr(run, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    setting = {"depth": depth, "save_at": [depth], "progress": True, "networks": 4096, "control": False}
    for target, words in ((None, ""), ((lambda q: q.K1[-1, 0, 0], 1e9), ", unless the target comes first")):
        small(key, target=target, **setting)
        (told,) = re.findall(
            r"4,096 networks in blocks of (\d+) need about (\d+):(\d+)(.*), and [\d.]+ [KMG]iB of memory",
            capsys.readouterr().err,
        )
        taken = 4096 / int(told[0]) * (0.2 + 0.002 * depth)
        assert abs(60 * int(told[1]) + int(told[2]) - taken) < 1 + 0.1 * taken
        assert told[3] == words


@pytest.mark.thorough
def test_target_is_looked_at_in_the_same_places_after_an_interruption(key, tmp_path, capsys):
    """A finished run with a target, resumed, stops where it is. Nothing is told, or computed to tell it, where nothing
    is left."""
    many = {"networks": 25_600, "control": False}
    target = (lambda q: q.K1[-1, 0, 0], 0.3)
    first = small(key, tmp_path / "run", **many, target=target)
    assert first.networks < 25_600
    assert small(key, tmp_path / "run", **many, target=target).networks == first.networks
    assert small(key, tmp_path / "run", **many).networks == 25_600
    assert same(small(key, tmp_path / "run", **many, progress=True), small(key, **many))
    assert "in blocks of" not in capsys.readouterr().err
