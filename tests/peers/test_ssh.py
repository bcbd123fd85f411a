"""A board behind a real OpenSSH server on the loopback, and every way in which it can fail."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from sshd import Board, missing, running

sys.path.insert(0, str(Path(__file__).parent.parent / "device_profiles"))
from conformance import QUICK, RunningDeviceConformance

from device_profiles.benchmark import benchmark
from device_profiles.devices import open_device
from device_profiles.devices.base import Device
from device_profiles.devices.ssh import Address, SshDevice, profile_of
from device_profiles.errors import DeviceError, ProfileError
from device_profiles.layers import write_layer
from device_profiles.profile import DeviceProfile, load_profile, write_profile


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with running(tmp_path_factory.mktemp("sshd")) as board:
        yield board


@pytest.fixture
def board(server: Board) -> Iterator[Board]:
    """The server, checked to be left as it was: no file of ours, no worker."""
    yield server
    until = time.monotonic() + 10
    while server.workers() and time.monotonic() < until:
        time.sleep(0.05)  # a worker ends a moment after its link
    assert server.workers() == []
    assert server.leftovers() == []


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return write_layer("dense", 8, tmp_path / "a 'small' net; $(touch gotcha) `id` \"x\" \\n.onnx", side=16)


def device_of(board: Board) -> SshDevice:
    return SshDevice(profile_for(board))


def profile_for(board: Board) -> DeviceProfile:
    return replace(load_profile("host"), name="board", kind="ssh", address=board.address)


@pytest.fixture
def device(board: Board) -> Iterator[SshDevice]:
    device = device_of(board)
    yield device
    device.clean_up()


class TestConformance(RunningDeviceConformance):
    @pytest.fixture
    def net(self, tmp_path: Path) -> Path:
        return write_layer("dense", 4, tmp_path / "net with 'quotes'; $(echo no).onnx", side=8)


def test_the_board_is_asked_what_it_is_without_a_file_on_it(board: Board) -> None:
    device = device_of(board)
    info, state = device.describe(), device.state()
    assert info.runtimes[".onnx"].startswith("onnxruntime ")
    assert info.abi
    assert info.cores == state.cores >= 1
    assert state.load_1m is not None
    assert board.leftovers() == []


def test_its_address_alone_gives_a_profile_that_is_read_back(board: Board, net: Path, tmp_path: Path) -> None:
    profile = profile_of(board.address)
    assert (profile.kind, profile.name, profile.address) == ("ssh", "board", board.address)
    assert profile.soc
    write_profile(profile, tmp_path / "board.toml")
    device = open_device(tmp_path / "board.toml")
    assert device.profile == profile
    assert benchmark(device, {"a": net}, **QUICK).measurements["a"].origin == "measured"
    device.clean_up()


def test_files_run_on_the_named_cores_and_threads(device: SshDevice, board: Board, net: Path) -> None:
    with device.session({"a": net}, threads=1, timeout_s=60, core_mask=0b1):
        worker = board.wait_for_worker()
        assert worker.cpu_affinity() == [0]
        assert worker.environ()["OMP_NUM_THREADS"] == "1"
    with (
        pytest.raises(DeviceError, match=r"core mask 0x1\d+ names core 200, which is not there"),
        device.session({"a": net}, threads=1, timeout_s=60, core_mask=1 << 200),
    ):
        pass


def test_gpu_and_nnapi_are_refused(device: SshDevice, net: Path) -> None:
    with pytest.raises(DeviceError, match="board runs files on its cpu only, not on gpu"):
        benchmark(device, {"a": net}, delegate="gpu", **QUICK)


# ---- nothing reaches the board's shell


@pytest.mark.parametrize("name", ['it\'s "a" folder; $(touch gotcha) `touch gotcha` & > gotcha', "-rf", "ü *?[x]\\"])
def test_folders_and_programs_of_any_name(board: Board, net: Path, name: str) -> None:
    folder = board.home / "cache" / name
    folder.mkdir()
    strange = board.with_python(f'exec {sys.executable} "$@"', name=f"py {name}")
    device = device_of(replace(strange, folder=str(folder)))
    with device.session({name: net}, threads=1, timeout_s=60) as session:
        assert session.time_round(name, min_runs=2, min_seconds=0.0).runs == 2
        assert {one.suffix for one in (folder / "mobileprune").rglob("*")} >= {".onnx", ".py"}
    assert [one.name for one in folder.iterdir()] == ["mobileprune"]
    device.clean_up()
    assert list(folder.iterdir()) == []
    folder.rmdir()
    assert not (board.home / "gotcha").exists()
    assert not Path("gotcha").exists()
    assert not (Path.home() / "gotcha").exists()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ssh://", "strange host"),
        ("ssh://-oProxyCommand=id", "strange host"),
        ("ssh://a@-oProxyCommand=id", "strange host"),
        ("ssh://-l@host", "strange host or user"),
        ("ssh://$(id)@host", "strange host or user"),
        ("ssh://a b@host", "strange host or user"),
        ("ssh://pi:secret@host", "passwords are ssh's own business"),
        ("ssh://host:port", "is no address"),
        ("ssh://host:99999", "is no address"),
        ("ssh://host/path", "is no address"),
        ("ssh://host?pyton=x", "unknown option 'pyton'"),
        ("ssh://host?python", "is no address"),
        ("ssh://host?python=", "without a sensible value"),
        ("ssh://host?folder=tmp", "does not start with '/'"),
        ("ssh://host?folder=/a%0Ab", "without a sensible value"),
        ("http://host", "is no address"),
    ],
)
def test_what_is_no_address(address: str, said: str) -> None:
    with pytest.raises(ProfileError, match=said) as caught:
        Address.parse(address)
    assert "\n" not in str(caught.value)


def test_addresses() -> None:
    assert Address.parse("ssh://pi@Board.local:2222?python=/opt/my%20python") == Address(
        "Board.local", "pi", 2222, "/opt/my python"
    )
    assert Address.parse("ssh://board") == Address("board")
    assert Address.parse("ssh://pi@[fe80::1]:22").host == "fe80::1"
    assert Address.parse("ssh://pi@board").destination == "pi@board"


def test_nothing_listens_beyond_the_loopback(device: SshDevice, board: Board, net: Path) -> None:
    with device.session({"a": net}, threads=1, timeout_s=60):
        board.wait_for_worker()
        roots = [psutil.Process(), psutil.Process(board.server.process.pid)]
        listening = set()
        for one in [*roots, *(child for root in roots for child in root.children(recursive=True))]:
            with contextlib.suppress(psutil.NoSuchProcess):
                found = one.net_connections("inet")
                listening |= {link.laddr.ip for link in found if link.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


# ---- faults


def one_sentence(error: pytest.ExceptionInfo[DeviceError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@contextlib.contextmanager
def replaced(path: Path, text: str) -> Iterator[None]:
    kept = path.read_text()
    path.write_text(text)
    try:
        yield
        assert path.read_text() == text  # nothing is trusted on the way
    finally:
        path.write_text(kept)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (
            "known_hosts",
            r"host key that is not known yet: connect once with `ssh -F .* board`, compare the fingerprint",
        ),
        ("authorized_keys", r"refuses the login .*set up a key with `ssh-copy-id"),
    ],
)
def test_a_board_that_is_not_known_or_does_not_know_us(board: Board, net: Path, file: str, said: str) -> None:
    with replaced(board.home / file, ""), pytest.raises(DeviceError, match=said) as caught:
        benchmark(device_of(board), {"a": net}, **QUICK)
    one_sentence(caught)


def test_a_host_key_that_has_changed(board: Board, net: Path) -> None:
    other = (board.home / "login_key.pub").read_text().split(" ")[:2]
    with (
        replaced(board.home / "known_hosts", f"[127.0.0.1]:{board.port} {' '.join(other)}\n"),
        pytest.raises(DeviceError, match=r"another host key than the known one: .*ssh-keygen -R") as caught,
    ):
        benchmark(device_of(board), {"a": net}, **QUICK)
    one_sentence(caught)


def test_a_board_that_is_switched_off(net: Path, tmp_path: Path) -> None:
    with running(tmp_path) as board:
        device = device_of(board)
        device.describe()
    with pytest.raises(DeviceError, match=r"cannot be reached: .*refused.*; check the address, the power"):
        benchmark(device, {"a": net}, **QUICK)


def test_a_link_that_drops_in_the_middle_of_a_round(device: SshDevice, board: Board, net: Path) -> None:
    def cut() -> None:
        board.wait_for_worker()
        time.sleep(2)
        board.server.drop()

    thread = threading.Thread(target=cut)
    thread.start()
    with pytest.raises(DeviceError, match="the ssh link to board was lost") as caught:
        benchmark(device, {"a": net}, min_seconds=60.0)
    thread.join()
    assert "a 'small' net" in one_sentence(caught)
    benchmark(device, {"a": net}, **QUICK)  # the board is back


def test_a_link_that_drops_between_two_rounds(device: SshDevice, board: Board, net: Path) -> None:
    with pytest.raises(DeviceError, match="the ssh link to board was lost"):
        benchmark(device, {"a": net}, **QUICK, progress=lambda done, total: board.server.drop())


def test_a_board_that_goes_away_between_push_and_run(net: Path, tmp_path: Path) -> None:
    with running(tmp_path) as board:
        device = device_of(board)
        device._place()
    with pytest.raises(DeviceError, match="cannot be reached"), device.session({"a": net}, threads=1, timeout_s=30):
        pass
    device.clean_up()  # nothing to do on a board that is gone, and no error either


def test_a_worker_that_crashes(device: SshDevice, board: Board, net: Path) -> None:
    def crash(done: int, total: int) -> None:
        board.wait_for_worker().send_signal(signal.SIGSEGV)

    with pytest.raises(DeviceError, match="was ended by SIGSEGV: the runtime crashed"):
        benchmark(device, {"a": net}, **QUICK, progress=crash)


def test_a_worker_that_hangs_is_ended_on_the_board_too(device: SshDevice, board: Board, net: Path) -> None:
    stopped: list[psutil.Process] = []

    def stop(done: int, total: int) -> None:
        stopped.append(board.wait_for_worker())
        stopped[0].suspend()

    with pytest.raises(DeviceError, match=r"no answer within 3.\d* s, so the run counts as hanging"):
        benchmark(device, {"a": net}, **QUICK, progress=stop, timeout_s=3)
    _, alive = psutil.wait_procs(stopped, timeout=10)
    assert alive == []


def test_a_folder_that_may_not_be_written(board: Board, net: Path) -> None:
    """Not even root can make a folder there."""
    with pytest.raises(DeviceError, match="does not let us write to /sys/mobileprune") as caught:
        benchmark(device_of(replace(board, folder="/sys")), {"a": net}, **QUICK)
    one_sentence(caught)


def test_a_full_disk(board: Board, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True).returncode:
        missing("mounting a small file system needs root")
    large = write_layer("dense", 256, tmp_path / "large.onnx")
    try:
        device = device_of(replace(board, folder=str(disk)))
        with pytest.raises(DeviceError, match="no space left"):
            benchmark(device, {"a": large}, **QUICK)
        device.clean_up()
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("exit 127", "that can be run"),
        ("echo 'SyntaxError: future feature annotations is not defined' >&2; exit 1", "too old: Python 3.7"),
        ("echo 'Segmentation fault' >&2; exit 139", "cannot run our worker with .*: Segmentation fault"),
        ("echo 'no json'", "gave no sensible answer: 'no json'"),
        ("exit 0", "gave no sensible answer"),
    ],
)
def test_a_python_that_does_not_work(board: Board, net: Path, lines: str, said: str) -> None:
    with pytest.raises(DeviceError, match=said) as caught:
        benchmark(device_of(board.with_python(lines)), {"a": net}, **QUICK)
    one_sentence(caught)


def test_a_board_without_python(board: Board, net: Path) -> None:
    with pytest.raises(DeviceError, match=r"has no /no/python that can be run .*: install python3 there, or name it"):
        benchmark(device_of(replace(board, python="/no/python")), {"a": net}, **QUICK)


def test_a_real_old_python(board: Board, net: Path) -> None:
    old = next((path for name in ("python3.6", "python3.5") if (path := shutil.which(name))), None)
    if old is None or subprocess.run([old, "-V"], capture_output=True).returncode:
        pytest.skip("no Python before 3.7 is installed here")
    with pytest.raises(DeviceError, match=r"too old: Python 3\.7"):
        benchmark(device_of(replace(board, python=old)), {"a": net}, **QUICK)


def test_a_board_without_a_runtime_is_told_what_to_install(board: Board, net: Path) -> None:
    bare = board.with_python(f'exec {sys.executable} -S "$@"')  # without the installed packages
    device = device_of(bare)
    assert device.describe().runtimes == {}
    with pytest.raises(DeviceError, match=r"no runtime for '.onnx' files; .*-m pip install onnxruntime"):
        benchmark(device, {"a": net}, **QUICK)


def test_a_file_that_arrives_damaged(board: Board, net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = device_of(board)
    send = device.remote.send

    def cut(local: Path, remote: str, **how: Any) -> None:
        send(local, remote, **how)
        if remote.endswith(".onnx"):
            device.remote.run(["truncate", "-s", "10", remote], check=True)

    monkeypatch.setattr(device.remote, "send", cut)
    with pytest.raises(DeviceError, match=r"net.*: arrived damaged on the board board"):
        benchmark(device, {"a": net}, **QUICK)
    device.clean_up()


def test_a_board_without_the_ssh_program(board: Board, net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DeviceError, match=r"cannot be reached: .*'ssh'"):
        benchmark(device_of(board), {"a": net}, **QUICK)


def test_two_devices_at_once_do_not_meet(board: Board, net: Path) -> None:
    first, second = device_of(board), device_of(board)
    with (
        first.session({"a": net}, threads=1, timeout_s=60),
        second.session({"a": net}, threads=1, timeout_s=60) as other,
    ):
        first.clean_up()
        assert other.time_round("a", min_runs=2, min_seconds=0.0).runs == 2
    second.clean_up()


def test_what_a_killed_program_left_is_swept_up_after_a_day(device: SshDevice, board: Board, net: Path) -> None:
    old = board.home / "cache" / "mobileprune" / "0123456789abcdef"
    old.mkdir(parents=True)
    (old / "0.onnx").touch()
    subprocess.run(["touch", "-d", "3 days ago", old], check=True)
    benchmark(device, {"a": net}, **QUICK)
    assert not old.exists()


def test_a_device_that_is_forgotten_leaves_nothing(board: Board, net: Path) -> None:
    device: Device | None = device_of(board)
    assert device is not None
    benchmark(device, {"a": net}, **QUICK)
    assert board.leftovers() != []  # what the next session needs
    device = None
