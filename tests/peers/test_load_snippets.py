"""The report's code for loading files, on real exported ones: run in Python, compiled and run in Kotlin and C++.

Python and C++ run the file in its own runtime and must see what mobileprune's runner sees. Nothing here has Android's
classes, LiteRT's or MediaPipe's for it (their archives come from Google's Maven alone), nor LiteRT's C header: the code
is compiled against declarations in kotlin/ and cpp/ that hold what it calls, and run as far as the input that it makes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from sshd import missing

sys.path.insert(0, str(Path(__file__).parents[1] / "exporters"))
sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import debian_packages
from small_nets import SPEC, calibration, export_net, make_net

import exporters.writing
from exporters.android import write_bundle
from exporters.runtimes import LiteRuntime, open_runtime
from mobileprune.data import RESIZE_RULE
from mobileprune.data.images import square
from mobileprune.report.usage import snippets
from mobileprune.training.batches import View

HERE = Path(__file__).parent
STORED, SIDE, CLASSES = 24, 16, 5
LEVEL = 1 / 255 / min(SPEC.std)  # one step of a pixel, as the network sees it
# "mixed": int8 with the last layer in float32, which so gives float32.
KINDS = [("onnx", "float32"), ("onnx", "int8"), ("tflite", "float32"), ("tflite", "int8"), ("tflite", "mixed")]
_LAST_LAYER = "serving_default_output_0_output;"
Photo = np.ndarray


def photos() -> list[Photo]:
    """uint8 (height, width, 3), of several shapes and colours."""
    draw = np.random.default_rng(0)
    tints = draw.integers(0, 256, (6, 1, 1, 3))
    shapes = ((40, 50), (70, 30), (24, 24), (16, 20), (33, 24), (90, 91))
    return [
        np.clip(tint + draw.normal(0, 40, (*shape, 3)), 0, 255).astype(np.uint8)
        for tint, shape in zip(tints, shapes, strict=True)
    ]


def wanted_input(photo: Photo) -> np.ndarray:
    """What training and evaluation see: float32 (1, 3, side, side)."""
    kept = torch.from_numpy(square(Image.fromarray(photo), STORED))[None]
    return View(SIDE, SPEC.mean, SPEC.std)(kept).contiguous().numpy()


@dataclass(frozen=True)
class Shop:
    """Exported files by format and precision, and the code that loads them."""

    files: dict[tuple[str, str], exporters.Artifact]

    def code(self, kind: tuple[str, str], language: str) -> str:
        artifact = self.files[kind]
        runner = open_runtime(artifact.path)
        file = {
            "path": str(artifact.path),
            "format": artifact.format,
            "precision": artifact.precision,
            "takes": runner.taken.dtype,
            "gives": runner.given.dtype,
            "input": artifact.input.to_dict(),
            "classes": artifact.output_classes,
        }
        (found,) = (code for _, told, code in snippets("runs/x", {"it": file}, STORED)[1:] if language in told)
        return found


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("files")
    for name in ("onnx", "tflite"):
        if reason := exporters.available(name):
            missing(reason)
    made = {}
    for name, precision in KINDS:
        path = folder / precision / f"model{exporters.suffix(name)}"
        path.parent.mkdir(exist_ok=True)
        if precision == "mixed":
            pictures = calibration()
            how = {"precision": "int8", "calibration": pictures, "kept_float": [_LAST_LAYER]}
            made[name, precision] = exporters.export(make_net("mobile"), SPEC, path, format=name, **how)
        else:
            made[name, precision] = export_net("mobile", path, name, precision)
    return Shop(made)


def run_python(code: str, photo: Photo, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """What the names of the code stand for after it has seen the photo."""
    patch.chdir(folder)
    Image.fromarray(photo).save(folder / "photo.jpg", format="PNG")  # PIL looks at what is in it
    names: dict[str, np.ndarray] = {}
    exec(compile(code, "snippet", "exec"), names)
    return names


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_python_gives_what_our_own_runner_gives(
    kind: tuple[str, str],
    shop: Shop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    runner, code = open_runtime(shop.files[kind].path), shop.code(kind, "Python")
    seen = photos()
    wanted = np.concatenate([runner(wanted_input(photo)) for photo in seen])
    got = np.concatenate([run_python(code, photo, tmp_path, monkeypatch)["logits"] for photo in seen])
    assert [int(line) for line in capsys.readouterr().out.split()] == wanted.argmax(1).tolist()
    assert np.abs(got - wanted).max() < 0.1 * np.ptp(wanted, axis=0).max()  # images are told apart by far more


def compiled_kotlin(sources: dict[str, str], folder: Path) -> Path:
    """A jar of the sources and of the declarations that they need."""
    if shutil.which("kotlinc") is None or shutil.which("java") is None:
        missing("kotlinc and java are not installed here; run: apt-get install kotlin")
    for name, text in sources.items():
        (folder / name).write_text(text, encoding="utf-8")
    files = [*(folder / name for name in sources), *sorted((HERE / "kotlin").glob("*.kt"))]
    done = subprocess.run(
        ["kotlinc", *files, "-include-runtime", "-d", folder / "x.jar"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder / "x.jar"


def test_kotlin_feeds_the_network_what_the_training_did(shop: Shop, tmp_path: Path) -> None:
    float32, int8 = shop.files["tflite", "float32"], shop.files["tflite", "int8"]
    bundle = write_bundle(
        float32, tmp_path / "android", labels=[str(i) for i in range(CLASSES)], resize=RESIZE_RULE, stored=STORED
    )
    jar = compiled_kotlin(
        {
            "Classifier.kt": bundle.example.read_text(encoding="utf-8"),
            "Float32.kt": shop.code(("tflite", "float32"), "Kotlin").replace("fun logits", "fun ofFloat32"),
            "Int8.kt": shop.code(("tflite", "int8"), "Kotlin").replace("fun logits", "fun ofInt8"),
            "Mixed.kt": shop.code(("tflite", "mixed"), "Kotlin").replace("fun logits", "fun ofMixed"),
        },
        tmp_path,
    )
    ends = LiteRuntime(int8.path.read_bytes(), 1)
    told = [f"-D{name}={end.scale} {end.zero_point}" for name, end in (("taken", ends.taken), ("given", ends.given))]
    for photo in photos():
        red, green, blue = (photo[..., channel].astype(np.int64) for channel in range(3))
        packed = ((255 << 24) | (red << 16) | (green << 8) | blue).astype(np.uint32).view(np.int32).ravel()
        given = f"{photo.shape[1]} {photo.shape[0]}\n{' '.join(map(str, packed))}\n"
        done = subprocess.run(
            ["java", *told, "-jar", jar, "MainKt"], input=given, capture_output=True, text=True, check=True
        )
        lines = done.stdout.splitlines()
        real = np.array(lines[0].split(), np.int8).view(np.float32).reshape(1, SIDE, SIDE, 3)
        whole = np.array(lines[2].split(), np.int8).reshape(1, SIDE, SIDE, 3)
        wanted = wanted_input(photo).transpose(0, 2, 3, 1)
        assert np.abs(real - wanted).max() <= 2 * LEVEL  # each step of the resize rounds to whole levels
        assert np.abs(ends.taken.to_real(whole) - wanted).max() <= 2 * LEVEL + ends.taken.scale
        assert np.array(lines[1].split(), float).tolist() == [0, 1, 2, 3, 4]
        answer = ends.given.to_real(np.arange(CLASSES, dtype=np.int8))
        assert np.array(lines[3].split(), float) == pytest.approx(answer, rel=1e-5)
        assert lines[4] == lines[2] and lines[5] == lines[1]
        assert lines[6] == "(cat, 0.5)"


MAIN = """
#include <cstdio>
int main() {
  std::vector<float> image;
  for (float value; std::scanf("%f", &value) == 1;) image.push_back(value);
  for (float value : logits(image)) std::printf("%.9g ", value);
}
"""


def compiled_cpp(code: str, folder: Path, *options: object) -> Callable[..., list[np.ndarray]]:
    """A program that gives the image on its input to the code; the lines that it prints, as numbers."""
    compiler = [shutil.which("c++") or ""] if shutil.which("c++") else [sys.executable, "-m", "ziglang", "c++"]
    (folder / "x.cpp").write_text(code + MAIN)
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-o", folder / "x"]
    done = subprocess.run([*compiler, folder / "x.cpp", *flags, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    def call(image: np.ndarray, **told: str) -> list[np.ndarray]:
        values = " ".join(f"{value:.9g}" for value in image.ravel())
        ran = subprocess.run(
            [folder / "x"], input=values, capture_output=True, text=True, check=True, env={**os.environ, **told}
        )
        return [np.array(line.split(), float) for line in ran.stdout.splitlines()]

    return call


def onnxruntime_headers() -> Path:
    """Those of Debian's package; the library is that of the wheel, which knows every older header."""
    try:
        root = debian_packages.unpacked("onnxruntime-headers", ["libonnxruntime-dev:amd64"], dependencies=False)
    except SystemExit as error:
        missing(f"no ONNX Runtime headers: {error}")
    return next(root.rglob("onnxruntime_cxx_api.h")).parent


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_cpp_with_onnx_runtime(precision: str, shop: Shop, tmp_path: Path) -> None:
    library = tmp_path / "libonnxruntime.so.1"  # the name by which a program looks for it
    library.symlink_to(next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")))
    paths = ("-isystem", onnxruntime_headers(), library, f"-Wl,-rpath,{tmp_path}")
    call = compiled_cpp(shop.code(("onnx", precision), "C++"), tmp_path, *paths)
    runner = open_runtime(shop.files["onnx", precision].path)
    for photo in photos():
        image = wanted_input(photo)
        assert call(image)[0] == pytest.approx(runner(image)[0], abs=1e-4)


@pytest.mark.parametrize("precision", ["float32", "int8", "mixed"])
def test_cpp_with_litert(precision: str, shop: Shop, tmp_path: Path) -> None:
    call = compiled_cpp(shop.code(("tflite", precision), "C++"), tmp_path, "-I", HERE / "cpp")
    runner = LiteRuntime(shop.files["tflite", precision].path.read_bytes(), 1)
    ends = {"TAKEN": f"{runner.taken.scale} {runner.taken.zero_point}"}
    ends["GIVEN"] = f"{runner.given.scale} {runner.given.zero_point}"
    if runner.given.dtype == "int8":
        ends["INTEGERS"] = "1"
    for photo in photos():
        image = wanted_input(photo).transpose(0, 2, 3, 1)
        fed, answer = call(image, **ends)
        held = runner.taken.from_real(image)
        if runner.taken.dtype == "int8":
            assert np.abs(fed - held.ravel()).max() <= 1  # a half is rounded up here and to even there
            assert np.mean(fed != held.ravel()) < 0.01
        else:
            assert fed.astype(np.int8).view(np.float32) == pytest.approx(image.ravel(), rel=1e-6)
        numbers = np.arange(CLASSES, dtype=runner.given.dtype)
        assert answer == pytest.approx(runner.given.to_real(numbers), rel=1e-5)
