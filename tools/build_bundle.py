"""Make the bundle that runs .onnx and .tflite files on any 64-bit ARM phone or board, which needs nothing of its own.

    python tools/build_bundle.py

It holds LiteRT and ONNX Runtime, as published for Linux on ARM; a small runner, compiled from
device_profiles/runners/native; and glibc with its loader, by which the runner is started. It goes to the cache
(~/.cache/mobileprune, or $MOBILEPRUNE_CACHE), where `adb` and `ssh` devices look for it, with a manifest that says
which versions it holds. Needs pip, Debian's or Ubuntu's apt, and the Python package ziglang (pip install ziglang).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

import debian_packages

from device_profiles.runners import bundle

LITERT, ONNXRUNTIME = "2.3.0", "1.31.1"  # the C API of LiteRT that litert.c is written for is that of this version
NATIVE = Path(bundle.__file__).parent / "native"
TARGET = "aarch64-linux-gnu.2.28"
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
# Of glibc only what the runtimes name as needed.
_GLIBC = ("ld-linux-aarch64.so.1", "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--force", action="store_true", help="make it anew even if it is there and up to date")
    print(build(force=parser.parse_args().force))


def build(*, force: bool = False) -> Path:
    """The folder of the bundle, which is made unless it is there and up to date."""
    folder = bundle.folder()
    recipe = _recipe()
    if not force and (found := bundle.find()) is not None and found.recipe == recipe:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".bundle-") as beside:
        new = Path(beside) / "new"
        new.mkdir()
        _take_wheels(new, Path(beside) / "wheels")
        packages = _take_glibc(new)
        _compile(new / bundle.RUNNER)
        manifest = {
            "schema": bundle.SCHEMA,
            "recipe": recipe,
            "runtimes": {".onnx": f"onnxruntime {ONNXRUNTIME}", ".tflite": f"ai-edge-litert {LITERT}"},
            "packages": packages,
            "files": {path.name: _sha256(path) for path in sorted(new.iterdir())},
        }
        (new / bundle.MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if folder.exists():
            folder.rename(Path(beside) / "old")
        new.rename(folder)
    return folder


def _recipe() -> str:
    """What the bundle is made from, as a digest: our sources and the versions of the others."""
    digest = hashlib.sha256(f"{LITERT} {ONNXRUNTIME} {TARGET} {debian_packages.RELEASE}".encode())
    for path in sorted(NATIVE.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _take_wheels(folder: Path, place: Path) -> None:
    wanted = (f"ai-edge-litert=={LITERT}", f"onnxruntime=={ONNXRUNTIME}")
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", *platforms, "--python-version", "3.11", "--dest", str(place), *wanted]
    if subprocess.run(command, stderr=subprocess.PIPE, text=True).returncode:
        raise SystemExit(f"pip cannot download {' and '.join(wanted)} for ARM: is the network there?")
    for member, name in (
        ("ai_edge_litert/libLiteRt.so", "libLiteRt.so"),
        (f"onnxruntime/capi/libonnxruntime.so.{ONNXRUNTIME}", "libonnxruntime.so.1"),
    ):
        for wheel in place.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                if member in archive.namelist():
                    (folder / name).write_bytes(archive.read(member))
        if not (folder / name).is_file():
            raise SystemExit(f"the published wheels no longer hold {member}")


def _take_glibc(folder: Path) -> dict[str, str]:
    packages = ["libc6:arm64", "libgcc-s1:arm64", "libstdc++6:arm64"]
    root = debian_packages.unpacked("glibc-arm64", packages, dependencies=False)
    for name in (*_GLIBC, "libgcc_s.so.1", "libstdc++.so.6"):
        found = next(root.glob(f"usr/lib/**/{name}"), None)
        if found is None:
            raise SystemExit(f"Debian's packages no longer hold {name}")
        shutil.copyfile(found, folder / name)  # what a link leads to, under the link's name
    (folder / bundle.LOADER).chmod(0o755)
    return debian_packages.versions(root)


def _compile(target: Path) -> None:
    if importlib.util.find_spec("ziglang") is None:
        raise SystemExit("the runner is compiled with the Python package ziglang: pip install ziglang")
    command = [sys.executable, "-m", "ziglang", "cc", "-target", TARGET, "-std=gnu11", "-O2", "-s"]
    command += ["-Wall", "-Wextra", "-Werror", "-Wno-deprecated-non-prototype", f'-DLITERT="ai-edge-litert {LITERT}"']
    command += ["-o", str(target), *map(str, sorted(NATIVE.glob("*.c"))), "-ldl", "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        version = metadata.version("ziglang")
        raise SystemExit(f"ziglang {version} cannot compile the runner:\n{done.stderr}")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
