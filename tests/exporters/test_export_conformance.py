"""What every format must do. A new format is tested by being in the registry."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from small_nets import SPEC, Shelf, calibration, export_net, make_net
from torch import Tensor, nn

import exporters.child
from exporters import Artifact, ExportError, InputSpec, export, export_draft
from exporters.artifact import sha256_of
from exporters.verify import check, open_runtime, parity

HOSTILE = ["-rf *.bin", 'it\'s "a" $(name)', "new\nline", "ünï ☃", "100%s {0}", "a" * 240, os.fsdecode(b"\xff\xfe")]


def leftovers(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if not entry.name.endswith(".log")]


@pytest.mark.parametrize("net", ["mobile", "cifar"])
def test_file_computes_what_the_module_does(shelf: Shelf, kind: tuple[str, str], net: str, images: np.ndarray) -> None:
    if net == "cifar" and kind[1] not in ("float32", "int8"):
        return  # the other precisions differ in their numbers, not in the graph
    artifact = shelf.get(net, *kind)
    found = parity(artifact.path, make_net(net), images)
    allowed = {"float32": 1e-5, "float16": 2e-4, "int16x8": 2e-3}.get(kind[1], 0.02)
    assert found.max_abs < allowed and found.samples == 7
    assert found.top1_agreement == 1.0 and found.scale > 0.01 and found.failure(kind[1]) is None


def test_artifact_describes_the_file(shelf: Shelf, kind: tuple[str, str]) -> None:
    artifact = shelf.get("mobile", *kind)
    assert artifact.sha256 == sha256_of(artifact.path)
    assert artifact.size_bytes == artifact.path.stat().st_size
    assert (artifact.format, artifact.precision, artifact.output_classes) == (*kind, 5)
    assert artifact.input == replace(SPEC, layout=exporters.exporter(kind[0]).layout)
    assert all(found[0].isdigit() for found in artifact.versions.values()) and "torch" in artifact.versions
    assert Artifact.from_dict(artifact.to_dict()) == artifact
    runtime = open_runtime(artifact.path)
    ends = exporters.exporter(kind[0]).ends.get(kind[1], "float32")
    assert (runtime.taken.dtype, runtime.given.dtype) == (ends, ends)


def test_twice_the_same_bytes_and_nothing_on_screen(
    shelf: Shelf, kind: tuple[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str], images: np.ndarray
) -> None:
    first = shelf.get("mobile", *kind)
    capfd.readouterr()
    again = export_net("mobile", tmp_path / f"other name{first.path.suffix}", *kind)
    check(again, make_net("mobile"), images)
    assert capfd.readouterr() == ("", "")
    assert again.sha256 == first.sha256


@pytest.mark.fresh_child
def test_a_fresh_process_writes_the_same_bytes(shelf: Shelf, format_name: str, tmp_path: Path) -> None:
    """int8 is made from float32, so its bytes tell of both."""
    again = export_net("cifar", tmp_path / f"x{exporters.suffix(format_name)}", format_name, "int8")
    assert again.sha256 == shelf.get("cifar", format_name, "int8").sha256


def test_weights_in_another_memory_order_give_the_same_bytes(shelf: Shelf, format_name: str, tmp_path: Path) -> None:
    """As training leaves them: litert-torch once read them in the wrong order."""
    net = make_net("cifar").to(memory_format=torch.channels_last)
    assert any(not tensor.is_contiguous() for tensor in net.parameters())
    path = tmp_path / f"x{exporters.suffix(format_name)}"
    assert export(net, SPEC, path, format=format_name).sha256 == shelf.get("cifar", format_name).sha256
    assert any(not tensor.is_contiguous() for tensor in net.parameters())


def test_draft_takes_what_the_final_file_takes(
    shelf: Shelf, kind: tuple[str, str], tmp_path: Path, images: np.ndarray
) -> None:
    final = shelf.get("mobile", *kind)
    drafted = export_draft(make_net("mobile"), SPEC, tmp_path / final.path.name, format=kind[0], precision=kind[1])
    ours, theirs = open_runtime(drafted.path), open_runtime(final.path)
    assert (ours.image, ours.taken.dtype, ours.given.dtype) == (theirs.image, theirs.taken.dtype, theirs.given.dtype)
    if kind[1] == "float32":
        check(drafted, make_net("mobile"), images)
    assert [entry.name for entry in tmp_path.iterdir()] == [final.path.name]


@pytest.mark.parametrize("size", [14, 16, 18])
def test_draft_of_padding_that_depends_on_the_size_computes_the_same(
    format_name: str, size: int, tmp_path: Path
) -> None:
    """Exported together with its arithmetic on shapes, an odd map was padded too little and lost a row."""
    net, spec = make_net("same"), InputSpec(3, size, size, SPEC.mean, SPEC.std)
    drafted = export_draft(net, spec, tmp_path / f"x{exporters.suffix(format_name)}", format=format_name)
    check(drafted, net, np.random.default_rng(3).standard_normal((4, *spec.shape()[1:])).astype(np.float32))


def test_integers_need_calibration(kind: tuple[str, str], tmp_path: Path) -> None:
    name, precision = kind
    if precision not in exporters.exporter(name).calibrated:
        return
    path = tmp_path / f"x{exporters.suffix(name)}"
    bad = calibration()
    bad[3, 0, 0, 0] = np.nan
    cases = [
        (None, "needs calibration images"),
        (bad[:0], "needs calibration images"),
        (bad, "hold NaN"),
        (bad[:, :, :8], "calibration needs images of 3x16x16"),
    ]
    for pictures, message in cases:
        with pytest.raises(ExportError, match=message):
            export(make_net("mobile"), SPEC, path, format=name, precision=precision, calibration=pictures)
    assert list(tmp_path.iterdir()) == []


def test_no_local_path_in_the_file(shelf: Shelf, format_name: str) -> None:
    data = shelf.get("cifar", format_name).path.read_bytes()
    for path in (Path(__file__).parent, Path(torch.__file__).parent, Path.home(), shelf.folder):
        assert os.fsencode(path) not in data


def test_hostile_folder_and_name(format_name: str, suffix: str, tmp_path: Path, images: np.ndarray) -> None:
    folder = tmp_path / "it's $(a)\n folder"
    folder.mkdir()
    path = folder / f"-o 'ü'\n{'n' * 200}{suffix}"
    artifact = export(make_net("cifar"), SPEC, path, format=format_name)
    assert artifact.path == path
    assert check(artifact, make_net("cifar"), images).samples == 7


@pytest.mark.parametrize("name", HOSTILE)
def test_runtimes_open_hostile_names(
    shelf: Shelf, format_name: str, suffix: str, name: str, tmp_path: Path, images: np.ndarray
) -> None:
    path = tmp_path / f"{name}{suffix}"
    shutil.copy(shelf.get("mobile", format_name).path, path)
    assert open_runtime(path)(images).shape == (7, 5)


def test_module_is_left_as_it_was(
    format_name: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = make_net("mobile").train()
    net.stem[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    monkeypatch.setattr(
        type(exporters.exporter(format_name)),
        "write",
        lambda self, module, spec, part, *rest: {"bytes": part.write_bytes(b"x")},
    )
    export(net, SPEC, tmp_path / f"x{suffix}", format=format_name)
    assert net.training and not net.stem[1].training and next(net.parameters()).requires_grad
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_refused(format_name: str, suffix: str, value: float, tmp_path: Path) -> None:
    net = make_net("mobile")
    net.stem[1].running_var[3] = value
    with pytest.raises(ExportError, match=r"stem\.1\.running_var"):
        export(net, SPEC, tmp_path / f"x{suffix}", format=format_name)
    assert list(tmp_path.iterdir()) == []


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else -x.mean((2, 3))


def test_model_that_cannot_be_traced(
    format_name: str, suffix: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"x{suffix}"
    with pytest.raises(ExportError, match=f"the {format_name} export failed: Could not guard") as caught:
        export(Branches(), SPEC, path, format=format_name)
    assert "\n" not in str(caught.value) and f"x{suffix}.log" in str(caught.value)
    assert "Traceback" in path.with_name(path.name + ".log").read_text()
    assert leftovers(tmp_path) == []
    assert capfd.readouterr() == ("", "")


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("net", "message"),
    [(Pair(), "gives tuple"), (nn.Conv2d(3, 4, 1), r"gives \(1, 4, 16, 16\)"), (nn.Conv2d(5, 4, 1), "does not run on")],
)
def test_module_that_is_no_classifier(
    format_name: str, suffix: str, net: nn.Module, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        export(net, SPEC, tmp_path / f"x{suffix}", format=format_name)


def test_targets_that_cannot_be(format_name: str, suffix: str, tmp_path: Path) -> None:
    net = make_net("mobile")
    folder = tmp_path / f"folder{suffix}"
    folder.mkdir()
    cases = {
        tmp_path / "absent" / f"x{suffix}": "does not exist; create it",
        folder: "it is a folder",
        tmp_path / "x.bin": f"must end in '{suffix}'",
        Path(f"{tmp_path}/a\0b{suffix}"): "null character",
        tmp_path / ("n" * 300 + suffix): "file name too long",
    }
    for path, message in cases.items():
        with pytest.raises(ExportError, match=message) as caught:
            export(net, SPEC, path, format=format_name)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [folder]


def test_missing_extra_names_the_command(
    format_name: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exporters.available(format_name) is None
    kind = type(exporters.exporter(format_name))
    monkeypatch.setattr(kind, "modules", ("no_such_module_at_all",))
    assert "no_such_module_at_all" in str(exporters.available(format_name))
    with pytest.raises(ExportError, match="run: pip install"):
        export(make_net("mobile"), SPEC, tmp_path / f"x{suffix}", format=format_name)


def test_precision_that_is_not_written(format_name: str, suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"precision 'int4' cannot be written.*float32"):
        export(make_net("mobile"), SPEC, tmp_path / f"x{suffix}", format=format_name, precision="int4")


def test_old_file_survives_a_failed_export(format_name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"the old one")
    with pytest.raises(ExportError):
        export(Branches(), SPEC, path, format=format_name)
    assert path.read_bytes() == b"the old one" and leftovers(tmp_path) == [path.name]


SCRIPT = """
import os, sys, time
from pathlib import Path
import torch
from exporters import ExportError, InputSpec, export
torch.set_num_threads(1)
{prelude}
from torch import nn
net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 99))
spec = InputSpec(3, 8, 8, (0.5,) * 3, (0.5,) * 3)
try:
    export(net, spec, Path(sys.argv[1]), format=sys.argv[2], timeout_s=120)
except ExportError as error:
    print(error)
"""


def script(prelude: str, path: Path, format_name: str) -> list[str]:
    return [sys.executable, "-c", SCRIPT.format(prelude=prelude), str(path), format_name]


def test_disk_full(format_name: str, suffix: str, small_disk: Path) -> None:
    path = small_disk / f"x{suffix}"
    log = small_disk.parent / "export.log"
    with pytest.raises(ExportError, match=f"cannot write .*x{suffix}': no space left on device; free some space"):
        export(make_net("wide"), SPEC, path, format=format_name, log=log)
    assert list(small_disk.iterdir()) == []


def test_file_size_limit(format_name: str, suffix: str, tmp_path: Path) -> None:
    prelude = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"
    path = tmp_path / f"x{suffix}"
    done = subprocess.run(script(prelude, path, format_name), capture_output=True, text=True, timeout=120)
    assert os.strerror(errno.EFBIG).lower() in done.stdout, done.stdout + done.stderr
    assert leftovers(tmp_path) == []


def test_killed_before_the_file_is_whole(format_name: str, suffix: str, tmp_path: Path) -> None:
    """The bytes are written but not yet safe on the disk when the process dies."""
    path = tmp_path / f"x{suffix}"
    prelude = """
import exporters
os.fsync = lambda fd: (print('written', flush=True), time.sleep(600))
type(exporters.exporter(sys.argv[2])).write = lambda self, module, spec, part, *rest: dict(n=part.write_bytes(b"x"))
"""
    with subprocess.Popen(script(prelude, path, format_name), stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None and running.stdout.readline() == "written\n"
        running.kill()
    assert not path.exists()
    assert all(name.startswith(".") and name.endswith(".part") for name in leftovers(tmp_path))


@pytest.mark.fresh_child
def test_killed_while_converting(format_name: str, suffix: str, tmp_path: Path) -> None:
    """A converter in a process of its own ends when the process that asked for it is killed."""
    path = tmp_path / f"x{suffix}"
    with subprocess.Popen(script("", path, format_name)) as running:
        parent = psutil.Process(running.pid)
        while not (children := parent.children()):
            assert running.poll() is None
        running.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("import os; os.abort()", "was killed by SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL"),
        ("import sys; print('last words', file=sys.stderr); sys.exit(7)", "ended with status 7: last words"),
        ("import time; time.sleep(600)", "did not finish within 2 s"),
    ],
)
@pytest.mark.fresh_child
def test_converter_that_dies(
    format_name: str, suffix: str, body: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporters.child, "worker_command", lambda: [sys.executable, "-c", body])
    with pytest.raises(ExportError, match=reason) as caught:
        export(make_net("mobile"), SPEC, tmp_path / f"x{suffix}", format=format_name, timeout_s=2)
    assert f"x{suffix}.log" in str(caught.value)
    assert leftovers(tmp_path) == []


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Rare(nn.Module):
    """An operator that no converter knows, two modules deep."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(3, 5, 1), Bessel())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x).mean((2, 3))


def test_unsupported_operator_is_named(format_name: str, suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="special_bessel_j0") as caught:
        export(Rare(), SPEC, tmp_path / f"x{suffix}", format=format_name)
    assert "block.1" in str(caught.value) and "use GELU" in str(caught.value) and "\n" not in str(caught.value)
    assert leftovers(tmp_path) == []
