"""A model far away gives what it gives here; what does not answer is an error, in time; servers bear what happens to them."""

import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

pytest.importorskip("tvm")
pytest.importorskip("onnx")

import onnx

from reparam_compiler.errors import LoweringError
from reparam_compiler.lowering.build import compile
from reparam_compiler.lowering.rpc.address import Rpc, host_and_port
from reparam_compiler.lowering.rpc.device import LostError, held_device
from reparam_compiler.lowering.rpc.messages import read, written
from reparam_compiler.lowering.rpc.tracker import known
from reparam_compiler.lowering.runtime.executable import Executable
from reparam_compiler.lowering.runtime.loading import load
from reparam_compiler.lowering.runtime.profile import profile
from tests.support.fleets import KEY, PATIENCE, Program, server, tracker
from tests.support.tvmc_runs import tvmc, write_onnx

pytestmark = [pytest.mark.tvm, pytest.mark.usefixtures("one_process")]


@pytest.fixture(scope="module")
def fleet() -> Iterator[tuple[Rpc, Program]]:
    """A device, and the program that lends it."""
    with tracker() as known_by, server(known_by) as lender:
        yield Rpc(known_by.address, KEY, wait=PATIENCE, timeout=PATIENCE), lender


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rpc")
    compile(onnx.load(write_onnx(folder / "m.onnx", 1))).save(folder / "m.tar")
    return folder / "m.tar"


@pytest.fixture
def far(fleet: tuple[Rpc, Program], artifact: Path) -> Executable:
    return load(artifact, rpc=fleet[0])


def test_a_model_far_away_gives_what_it_gives_here(far: Executable, artifact: Path) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 7)).astype("float32")
    here = load(artifact)
    np.testing.assert_array_equal(far.run(x)[0], here.run(x)[0])
    assert (far.inputs, far.outputs, far.kernels) == (here.inputs, here.outputs, here.kernels)
    assert far.runs_here
    assert far.threads == 1  # the server's, whatever this process has


def test_it_is_timed_and_profiled_there(far: Executable, artifact: Path) -> None:
    timing = far.timing(repeat=3, number=2)
    assert len(timing.seconds) == 3
    assert min(timing.seconds) > 0
    found, here = profile(far, runs=2), profile(load(artifact), runs=2)
    assert [(layer.kernel, layer.shape) for layer in found.layers] == [(layer.kernel, layer.shape) for layer in here.layers]
    assert found.peak_flops is None  # this machine's would be another


def test_a_clone_takes_other_cores_of_the_same_device(far: Executable, artifact: Path) -> None:
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 7)).astype("float32")
    other = far.clone(threads=2)
    assert (far.threads, other.threads) == (1, 2)
    np.testing.assert_array_equal(other.run(x)[0], load(artifact).run(x)[0])


def test_a_model_of_any_batch_runs_far_away(fleet: tuple[Rpc, Program], tmp_path: Path) -> None:
    from reparam_compiler import compile

    compile(onnx.load(write_onnx(tmp_path / "m.onnx", "n")), batches=(1, 2), verify=False).save(tmp_path / "m.tar")
    x = np.random.default_rng(0).standard_normal((5, 3, 8, 7)).astype("float32")
    np.testing.assert_array_equal(load(tmp_path / "m.tar", rpc=fleet[0]).run(x)[0], load(tmp_path / "m.tar").run(x)[0])


def test_an_opencl_device_runs_behind_a_server(fleet: tuple[Rpc, Program], tmp_path: Path) -> None:
    pytest.importorskip("pyopencl")
    here = compile(onnx.load(write_onnx(tmp_path / "m.onnx", 1)), target="opencl")
    here.save(tmp_path / "m.tar")
    x, far = np.random.default_rng(0).standard_normal((1, 3, 8, 7)).astype("float32"), load(tmp_path / "m.tar", rpc=fleet[0])
    np.testing.assert_array_equal(far.run(x)[0], here.run(x)[0])
    assert {call.name for call in far.profiled([x], 1)[0]} == {call.name for call in here.profiled([x], 1)[0]}


def test_the_command_runs_an_artifact_there(fleet: tuple[Rpc, Program], artifact: Path, tmp_path: Path) -> None:
    x, outputs = np.random.default_rng(1).standard_normal((1, 3, 8, 7)).astype("float32"), tmp_path / "out.npz"
    np.savez(tmp_path / "in.npz", x=x)
    rpc = ("--rpc-tracker", fleet[0].tracker, "--rpc-key", KEY, "--rpc-wait", int(PATIENCE))
    done = tvmc("run", artifact, *rpc, "-i", tmp_path / "in.npz", "-o", outputs, "--print-time", "--repeat", 3)
    assert done.exit_code == 0, done.output
    assert "median (ms)" in done.stdout
    np.testing.assert_array_equal(np.load(outputs)["output_0"], load(artifact).run(x)[0])


def test_what_there_cannot_be_loaded_is_refused_with_its_reason(fleet: tuple[Rpc, Program]) -> None:
    device = held_device(fleet[0])
    with pytest.raises(LoweringError, match="truncated or foreign file"):
        device.ask("load", [np.zeros(100, np.uint8)])
    with pytest.raises(LoweringError, match="IndexError"):
        device.ask("run", model=7, threads=1)
    device.close()


def test_a_session_that_crashes_costs_that_session_alone(fleet: tuple[Rpc, Program], far: Executable) -> None:
    (session,) = psutil.Process(fleet[1].process.pid).children()
    session.kill()
    with pytest.raises(LostError, match="was lost"):
        far.run(np.zeros((1, 3, 8, 7), np.float32))
    held_device(fleet[0]).close()  # the device is there again


def test_a_server_that_hangs_is_an_error_in_time(fleet: tuple[Rpc, Program], artifact: Path) -> None:
    device = held_device(fleet[0])
    far = device.loaded(artifact)
    device.seconds = 1.0
    fleet[1].signalled(signal.SIGSTOP)
    try:
        with pytest.raises(LostError, match="did not answer within 1 s"):
            far.run(np.zeros((1, 3, 8, 7), np.float32))
    finally:
        fleet[1].signalled(signal.SIGCONT)
    held_device(fleet[0]).close()


def test_a_key_that_nobody_has_is_an_error_after_the_wait(fleet: tuple[Rpc, Program]) -> None:
    with pytest.raises(LoweringError, match=r"'pi4' .* within 1 s: it has no server of that key; it has loopback\. Start one"):
        held_device(replace(fleet[0], key="pi4", wait=1.0))


def test_a_device_that_others_hold_is_an_error_after_the_wait(fleet: tuple[Rpc, Program], far: Executable) -> None:
    assert known(fleet[0]).servers == 1
    with pytest.raises(LoweringError, match="it has 1 server, which others use"):
        held_device(replace(fleet[0], wait=1.0))
    assert far.threads == 1


def test_a_tracker_that_is_away_is_an_error_after_the_wait(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(LoweringError, match=r"did not answer for 1 s .* start one: tvmc tracker"):
        known(Rpc(address, KEY, wait=1.0))
    assert "does not answer" in caplog.text


def test_programs_end_by_a_signal_and_leave_no_session(fleet: tuple[Rpc, Program]) -> None:
    with tracker() as of, server(of) as lender:
        held_device(replace(fleet[0], tracker=of.address))
        sessions = psutil.Process(lender.process.pid).children()
        lender.process.send_signal(signal.SIGTERM)
        assert lender.process.wait(PATIENCE) == 0
        of.process.send_signal(signal.SIGINT)
        assert of.process.wait(PATIENCE) == 0
        assert not psutil.wait_procs(sessions, PATIENCE)[1]


@given(st.text("abcxyz0189.-", min_size=1), st.integers(0, 65535))
def test_an_address_is_read_as_it_is_written(host: str, port: int) -> None:
    assert host_and_port(f"{host}:{port}") == (host, port)
    assert host_and_port(f"[{host}]:{port}") == (host, port)


@pytest.mark.parametrize("text", ["", "host", "host:", ":9190", "host:x", "host:65536", "host:-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(LoweringError, match="expected HOST:PORT"):
        Rpc(text, KEY).check()


@pytest.mark.parametrize(("named", "message"), [({"key": "a b"}, "expected a word"), ({"wait": 0.0}, "more than 0 seconds")])
def test_devices_that_nothing_can_name_are_refused(named: dict[str, object], message: str) -> None:
    with pytest.raises(LoweringError, match=message):
        Rpc(**{"tracker": "host:1", "key": KEY, **named}).check()  # type: ignore[arg-type]


@given(
    st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.floats(allow_nan=False))),
    st.lists(
        arrays.arrays(st.sampled_from(["float32", "float16", "int64", "bool"]), arrays.array_shapes(min_dims=0, max_side=3))
    ),
)
def test_a_message_is_read_as_it_was_written(about: dict[str, object], given_arrays: list[np.ndarray]) -> None:  # type: ignore[type-arg]
    found, held = read(written(about, given_arrays))
    assert found == about
    assert len(held) == len(given_arrays)
    for one, other in zip(held, given_arrays, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_a_port_that_is_taken_and_half_of_a_name_are_refused(artifact: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = tvmc("tracker", "--port", taken.getsockname()[1])
    assert (done.exit_code, "cannot listen there" in done.stderr) == (4, True)
    done = tvmc("run", artifact, "--rpc-key", KEY)
    assert (done.exit_code, "--rpc-tracker: not given beside --rpc-key" in done.stderr) == (4, True)
    assert tvmc("server", "--tracker", "x", "--key", KEY).exit_code == 4
    assert tvmc("tracker", "--port", "65536").exit_code == 2
