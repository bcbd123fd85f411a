"""Decoded once: the cache is hit, shared, bounded, and never a reason to fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from test_data import write_image

from mobileprune.data import ImageData, decode, load_data
from mobileprune.errors import MobilepruneError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOBILEPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(10):
        write_image(tmp_path / "photos" / "cats" / f"{i}.png", (255, 10 * i, 0))
        write_image(tmp_path / "photos" / "dogs" / f"{i}.png", (0, 10 * i, 255))
    return tmp_path / "photos"


def same(a: ImageData, b: ImageData) -> bool:
    pairs = [(a.train, b.train), (a.validation, b.validation)]
    return a.classes == b.classes and all(
        torch.equal(x.images, y.images) and torch.equal(x.labels, y.labels) for x, y in pairs
    )


def objects(cache: Path) -> list[Path]:
    return sorted((cache / "objects").iterdir())


def test_images_are_decoded_once(cache: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_data(str(photos), image_size=8)
    assert len(objects(cache)) == 2

    def refuse(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(Image, "open", refuse)
    again = load_data(str(photos), image_size=8)
    assert same(first, again)
    assert first.fingerprint() == again.fingerprint()


def test_a_changed_image_is_decoded_again(cache: Path, photos: Path) -> None:
    before = load_data(str(photos), image_size=8)
    file = photos / "cats" / "3.png"
    stat = file.stat()
    write_image(file, (254, 30, 0))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # even where its time says otherwise
    after = load_data(str(photos), image_size=8)
    assert before.fingerprint() != after.fingerprint()
    assert not same(before, after)


def test_the_same_pixels_elsewhere_take_no_more_room(cache: Path, photos: Path, tmp_path: Path) -> None:
    load_data(str(photos), image_size=8)
    before = objects(cache)
    photos.rename(tmp_path / "moved")
    load_data(str(tmp_path / "moved"), image_size=8)
    assert objects(cache) == before


@pytest.mark.parametrize("damage", ["cut", "gone", "index"])
def test_a_damaged_cache_is_built_again(cache: Path, photos: Path, damage: str) -> None:
    first = load_data(str(photos), image_size=8)
    expected = (first.train.images.clone(), first.fingerprint())
    victim = objects(cache)[0]
    if damage == "cut":
        victim.write_bytes(b"123")
    elif damage == "gone":
        victim.unlink()
    else:
        next((cache / "index").glob("*.npz")).write_bytes(b"PK\3\4")
    again = load_data(str(photos), image_size=8)
    assert torch.equal(again.train.images, expected[0])
    assert again.fingerprint() == expected[1]


_LOAD = """
import sys, time
from mobileprune.data import decode
slow = decode.square
def slower(image, size):
    time.sleep(0.03)
    return slow(image, size)
decode.square = slower
from mobileprune.data import load_data
print(load_data(sys.argv[1], image_size=8).fingerprint(), flush=True)
"""


def test_two_processes_build_one_cache(cache: Path, photos: Path) -> None:
    command = [sys.executable, "-c", _LOAD, str(photos)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0, 0], answers
    assert {out.strip() for out, _ in answers} == {load_data(str(photos), image_size=8).fingerprint()}
    assert not list(cache.rglob(".*"))


def test_a_killed_builder_leaves_nothing_in_the_way(cache: Path, photos: Path) -> None:
    slow = _LOAD.replace("0.03", "5")
    process = subprocess.Popen([sys.executable, "-c", slow, str(photos)])
    while not list(cache.rglob("*.building")):
        assert process.poll() is None
    process.kill()
    process.wait()
    assert len(load_data(str(photos), image_size=8).train) == 18
    assert not list(cache.rglob("*.building"))


def test_the_oldest_go_when_there_is_no_room(
    cache: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOBILEPRUNE_CACHE_GB", str(2.5 * 20 * 3 * 8 * 8 / 1e9))  # room for two such sets
    load_data(str(photos), image_size=8, seed=1)
    mapped = load_data(str(photos), image_size=8, seed=2)
    for path in objects(cache):
        os.utime(path, (1, 1))
    load_data(str(photos), image_size=8, seed=2)  # used: newer than those of seed 1
    first = set(objects(cache))
    load_data(str(photos), image_size=8, seed=3)
    known = objects(cache)
    assert len(first - set(known)) == 1  # the larger one of seed 1
    assert sum(path.stat().st_size for path in known) <= 2.5 * 20 * 3 * 8 * 8
    load_data(str(photos), image_size=8, seed=2)
    assert known == objects(cache)  # seed 2 was still there
    assert int(mapped.train.images.max()) == 255


def test_a_set_larger_than_the_limit_stays_in_memory(
    cache: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOBILEPRUNE_CACHE_GB", "0.000001")
    data = load_data(str(photos), image_size=8)
    assert len(data.train) == 18
    assert any("more than the cache may hold" in note for note in data.notes)
    assert not (cache / "objects").exists()


def test_a_set_that_fits_nowhere_names_what_to_set(cache: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOBILEPRUNE_CACHE_GB", "0.000001")
    memory = psutil.virtual_memory()._replace(available=3000)
    monkeypatch.setattr(decode.psutil, "virtual_memory", lambda: memory)
    with pytest.raises(MobilepruneError, match="set MOBILEPRUNE_CACHE to a folder with room"):
        load_data(str(photos), image_size=8)


def test_a_read_only_cache_is_no_obstacle(
    photos: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    expected = load_data(str(photos), image_size=8)
    monkeypatch.setenv("MOBILEPRUNE_CACHE", str(small_disk / "cache"))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    data = load_data(str(photos), image_size=8)
    assert same(data, expected)
    (note,) = data.notes
    assert "cannot be written (Read-only file system)" in note


def test_a_full_disk_while_caching_is_no_obstacle(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (200, 24, 24, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", train_x=x, train_y=np.arange(200) % 4)
    monkeypatch.setenv("MOBILEPRUNE_CACHE", str(small_disk))
    data = load_data(str(tmp_path / "a.npz"), image_size=48)  # 1.4 MB on a disk of 1 MB
    assert len(data.train) + len(data.validation) == 200
    (note,) = data.notes
    assert "No space left on device" in note
    assert [p for p in small_disk.rglob("*") if p.suffix != ".lock" and p.is_file()] == []
