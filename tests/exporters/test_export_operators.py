"""Shares of work and left-over operators, counted by hand."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exporter_peers import absent, need_format
from small_nets import SPEC, Shelf, make_net
from torch import Tensor, nn

import exporters.verify
from exporters import ExportError, export
from exporters.arm64 import check_arm64, programs
from exporters.old import TOLERANCE, check_old, compare, interpreter
from exporters.operators import acceleration, peak_memory, tflite_operators
from exporters.verify import Gates, Verification, torch_logits, verify

ANSWERED = """echo '{"error": "unknown request"}'; """  # what the runner for ARM says to a greeting


def test_work_of_each_operator(shelf: Shelf) -> None:
    need_format("tflite")
    operators = tflite_operators(shelf.get("mobile", "tflite").path)
    work = {kind: sorted(o.work for o in operators if o.kind == kind) for kind in {o.kind for o in operators}}
    # stem 3x3x3 to 8x8x8, squeeze 8 to 4, expand 4 to 8; depthwise 3x3; the classifier 8 to 5
    assert work["CONV_2D"] == [32, 32, 8 * 8 * 8 * 27]
    assert work["DEPTHWISE_CONV_2D"] == [8 * 8 * 8 * 9]
    assert work["FULLY_CONNECTED"] == [40]
    assert all(operator.accelerated for operator in operators)


def test_what_xnnpack_leaves(shelf: Shelf) -> None:
    need_format("tflite")
    whole = acceleration(shelf.get("mobile", "tflite").path)
    assert whole.share == 1.0 and whole.outside == {} and whole.layout == {"PAD": 1}
    assert 0 < whole.layout_share < 0.5
    none = acceleration(shelf.get("mobile", "tflite", "int16x8").path)
    assert none.share < 0.05 and {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"} < set(none.outside)
    some = acceleration(shelf.get("mobile", "tflite", "dynamic").path)
    assert list(some.outside) == ["DEPTHWISE_CONV_2D"]
    assert some.share == pytest.approx(1 - some.outside["DEPTHWISE_CONV_2D"])


def test_onnx_and_executorch(shelf: Shelf) -> None:
    found = acceleration(shelf.get("cifar", "onnx").path)
    assert found.share is None and found.layout == {"Pad": 1, "Reshape": 1} and 0 < found.layout_share < 1
    need_format("executorch")
    made = shelf.get("mobile", "executorch")
    assert acceleration(made.path, made.notes).share == made.notes["delegated"] > 0.95


class Erf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(40):
            x = torch.erf(x)
        return x.mean((2, 3))


def test_executorch_refuses_portable_kernels(tmp_path: Path) -> None:
    need_format("executorch")
    with pytest.raises(ExportError, match=r"XNNPACK takes only \d+% of the work .*portable kernels would run .*erf"):
        export(Erf(), SPEC, tmp_path / "x.pte", format="executorch")
    assert not (tmp_path / "x.pte").exists()


def test_peak_memory_holds_the_weights(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 20_000), nn.ReLU(), nn.Linear(20_000, 5))
    small, large = tmp_path / "small.onnx", tmp_path / "it's large.onnx"
    export(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), SPEC, small, format="onnx", simplify=False)
    export(net, SPEC, large, format="onnx", simplify=False)
    grown = peak_memory(large) - peak_memory(small)
    assert 60e6 < grown < 400e6  # 62 MB of weights, which are read, parsed and packed


def test_peak_memory_that_takes_too_long_is_not_told(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    export(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), SPEC, path, format="onnx", simplify=False)
    assert peak_memory(path, timeout_s=0.01) is None


@pytest.fixture
def old_runtime() -> None:
    if not interpreter().is_file():
        absent("tflite-runtime is not installed here; run: python tools/old_runtime.py")


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "int8-float-io", "int8-uint8-io", "int16x8"])
def test_old_runtime_agrees(old_runtime: None, shelf: Shelf, precision: str, images: np.ndarray) -> None:
    need_format("tflite")
    found = check_old(shelf.get("mobile", "tflite", precision).path, images, precision)
    assert found.agrees and found.mark is None and found.runtime == "tflite-runtime 2.14.0"


def test_old_runtime_that_gives_garbage_is_marked(old_runtime: None, shelf: Shelf, images: np.ndarray) -> None:
    need_format("tflite")
    found = check_old(shelf.get("mobile", "tflite", "dynamic").path, images, "dynamic")
    assert found.agrees is False and found.mark.startswith("not for runtimes older than litert 2.")


def test_old_runtime_that_is_missing_or_broken(
    shelf: Shelf, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_format("tflite")
    path = shelf.get("mobile", "tflite").path
    monkeypatch.setenv("MOBILEPRUNE_OLD_RUNTIME", str(tmp_path / "none"))
    missing = check_old(path, images)
    assert missing.agrees is None and missing.mark is None and "tools/old_runtime.py" in missing.reason
    fake = tmp_path / "python"
    monkeypatch.setenv("MOBILEPRUNE_OLD_RUNTIME", str(fake))
    fake.write_text("#!/bin/sh\necho started; echo 'Op FANCY version 9 is not known' >&2\nexit 1\n")
    fake.chmod(0o755)
    refused = check_old(path, images)
    assert refused.agrees is False and "Op FANCY version 9" in refused.mark


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "#!/bin/sh\necho 'ImportError: no numpy' >&2; exit 1",
            "does not work: ImportError: no numpy; run: python tools",
        ),
        ("#!/bin/sh\nexit 0", "does not work: .*No such file"),
        ("#!/bin/sh\n: > $6", "does not work: No data left"),
        ("#!/nowhere/sh", "does not work: .*No such file"),
        ("#!/bin/sh\nexec sleep 60", "took more than 0.5 s"),
    ],
)
def test_old_runtime_that_does_not_work_says_nothing_of_the_file(
    script: str, reason: str, shelf: Shelf, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_format("tflite")
    fake = tmp_path / "python"
    fake.write_text(f"{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("MOBILEPRUNE_OLD_RUNTIME", str(fake))
    found = check_old(shelf.get("mobile", "tflite").path, images, timeout_s=0.5 if "sleep" in script else 60)
    assert found.agrees is None and found.mark is None and re.search(f"not compared: .*{reason}", found.reason)


def test_old_runtime_that_cannot_be_imported(shelf: Shelf, images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """This environment holds no tflite-runtime."""
    need_format("tflite")
    monkeypatch.setenv("MOBILEPRUNE_OLD_RUNTIME", sys.executable)
    found = check_old(shelf.get("mobile", "tflite").path, images)
    assert found.agrees is None and "No module named 'tflite_runtime'" in found.reason


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "int8-float-io", "int8-uint8-io"])
def test_arm64_agrees(shelf: Shelf, precision: str, images: np.ndarray) -> None:
    need_format("tflite")
    if programs() is None:
        absent("qemu and the runner are not installed here; run: tools/test_phone.py fetch and tools/build_bundle.py")
    path = shelf.get("mobile", "tflite", precision).path
    found = check_arm64(path, images, precision)
    assert found.agrees and found.mark is None and found.difference is not None
    words = check_arm64(shelf.get("mobile", "tflite", "int16x8").path, images, "int16x8")
    assert words.agrees is None and "16-bit integers" in words.reason
    late = check_arm64(path, images, precision, timeout_s=0.001)
    assert late.agrees is None and "took more than 0.001 s" in late.reason


def test_arm64_that_is_missing_or_broken(
    shelf: Shelf, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_format("tflite")
    path = shelf.get("mobile", "tflite").path
    monkeypatch.setenv("MOBILEPRUNE_CACHE", str(tmp_path))
    missing = check_arm64(path, images)
    assert missing.agrees is None and missing.mark is None and "tools/build_bundle.py" in missing.reason
    qemu = broken_qemu(tmp_path)
    cases = {"""echo '{"error": "no FANCY"}'""": "cannot run it: no FANCY", "echo last words >&2; exit 3": "last words"}
    for script, reason in cases.items():
        qemu.write_text(f"#!/bin/sh\ncat > /dev/null\n{ANSWERED}{script}\n")
        refused = check_arm64(path, images)
        assert refused.agrees is False and refused.mark.startswith("not for litert on arm64: ")
        assert reason in refused.mark


def broken_qemu(cache: Path) -> Path:
    """The place of a program that stands in for qemu, beside an empty runner."""
    (cache / "bundles/arm64").mkdir(parents=True)
    (cache / "bundles/arm64/runner").touch()
    qemu = cache / "debian/qemu-1/usr/bin/qemu-aarch64"
    qemu.parent.mkdir(parents=True)
    qemu.touch(0o755)
    return qemu


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("#!/nowhere/sh", "No such file"),
        ("#!/bin/sh\ncat > /dev/null; echo 'qemu: Could not open ld-linux' >&2; exit 255", "Could not open ld-linux"),
        ("#!/bin/sh\ncat > /dev/null; echo warning: no JSON", "Expecting value"),
        ("#!/bin/sh\ncat > /dev/null; echo 5", "ended with status 0"),
        (f"#!/bin/sh\ncat > /dev/null; {ANSWERED}" + """echo '{"error": "libLiteRt.so: not found"}'""", "libLiteRt"),
        (f"#!/bin/sh\ncat > /dev/null; {ANSWERED}yes '{{}}' | head -8", "No such file"),  # no outputs
    ],
)
def test_qemu_that_does_not_work_says_nothing_of_the_file(
    script: str, reason: str, shelf: Shelf, images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need_format("tflite")
    monkeypatch.setenv("MOBILEPRUNE_CACHE", str(tmp_path))
    broken_qemu(tmp_path).write_text(f"{script}\n")
    found = check_arm64(shelf.get("mobile", "tflite").path, images)
    assert found.agrees is None and found.mark is None and re.search(f"not compared: .*{reason}.*; run:", found.reason)


def test_broken_peers_reject_no_file(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_format("tflite")
    monkeypatch.setenv("MOBILEPRUNE_CACHE", str(tmp_path))
    qemu = broken_qemu(tmp_path)
    qemu.write_text("#!/nowhere/sh\n")
    monkeypatch.setenv("MOBILEPRUNE_OLD_RUNTIME", str(qemu))
    images = np.random.default_rng(1).standard_normal((20, 3, 16, 16)).astype(np.float32)
    artifact = _copied(shelf, "tflite", "float32", tmp_path)
    found = verify(artifact, make_net("mobile"), images)
    assert artifact.path.is_file() and [other.agrees for other in found.others] == [None, None]
    assert Verification.from_dict(found.to_dict()) == found


def test_tolerance_between_devices() -> None:
    wanted = np.array([[0.0, 10.0]], np.float32)
    step = TOLERANCE["float32"] * 10
    assert compare("phone", wanted + 0.9 * step, wanted).agrees
    assert not compare("phone", wanted + 1.1 * step, wanted).agrees
    assert compare("phone", wanted + 1.1 * step, wanted, "int8").agrees
    assert not compare("phone", wanted * np.nan, wanted).agrees
    assert "shape" in compare("phone", wanted[:, :1], wanted).reason


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_verification_of_a_good_file(shelf: Shelf, format_name: str, precision: str, tmp_path: Path) -> None:
    artifact = _copied(shelf, format_name, precision, tmp_path)
    images = np.random.default_rng(1).standard_normal((20, 3, 16, 16)).astype(np.float32)
    net = make_net("mobile")
    labels = torch_logits(net, images).argmax(1)
    found = verify(artifact, net, images, labels, reference=1.0, gates=Gates(allowed_drop=0.1))
    assert found.accuracy >= 0.9 and found.samples == 20 and found.parity.samples == 20
    assert found.size_bytes == artifact.size_bytes and found.peak_memory_bytes > 0
    assert found.takes.dtype == exporters.exporter(format_name).ends.get(precision, "float32")
    others = [other.runtime for other in found.others]
    assert others == (["tflite-runtime 2.14.0", "litert on arm64"] if format_name == "tflite" else [])
    assert Verification.from_dict(found.to_dict()) == found


def test_gates(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_format("tflite")
    images = np.random.default_rng(1).standard_normal((20, 3, 16, 16)).astype(np.float32)
    net = make_net("mobile")
    wrong = (torch_logits(net, images).argmax(1) + np.arange(20) % 2) % 5
    cases = [
        (wrong, 1.0, Gates(), r"its accuracy is 50\.00% on 20 images, 50\.0 points below 100\.00% \(1 allowed\)"),
        (None, None, Gates(accelerated=1.1), "XNNPACK takes only 100% of its work"),
        (None, None, Gates(atol=0.0), "its logits differ"),
    ]
    for labels, reference, gates, reason in cases:
        artifact = _copied(shelf, "tflite", "float32", tmp_path)
        with pytest.raises(ExportError, match=reason):
            verify(artifact, net, images, labels, reference=reference, gates=gates)
        assert not artifact.path.exists() and (tmp_path / "rejected" / artifact.path.name).is_file()
    kept = _copied(shelf, "tflite", "float32", tmp_path)
    verify(kept, net, images, wrong, reference=0.505)
    assert kept.path.is_file()


def _copied(shelf: Shelf, kind: str, precision: str, folder: Path) -> exporters.Artifact:
    from dataclasses import replace

    made = shelf.get("mobile", kind, precision)
    shutil.copy(made.path, folder)
    return replace(made, path=folder / made.path.name)
