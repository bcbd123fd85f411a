"""Data as people have it, and what is said of data that cannot train a classifier."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mobileprune.data import ImageData, Split, load_data, resize
from mobileprune.errors import UsageError
from mobileprune.training.batches import Crops, View, batches


def write_image(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (20, 14)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(10):
        write_image(tmp_path / "cats" / f"{i}.png", (255, 10 * i, 0))
        write_image(tmp_path / "dogs" / f"{i}.png", (0, 10 * i, 255))
    return tmp_path


def test_digits_are_split_by_class_and_never_mirrored() -> None:
    data = load_data("digits")
    assert (len(data.train), len(data.validation), data.test) == (1438, 359, None)
    assert data.train.images.shape[1:] == (3, 32, 32)
    assert data.train.images.dtype == torch.uint8
    share = torch.bincount(data.validation.labels) / (
        torch.bincount(data.train.labels) + torch.bincount(data.validation.labels)
    )
    assert share.sub(0.2).abs().max() < 0.01
    assert data.flip is False


def test_the_same_seed_gives_the_same_split_and_another_another() -> None:
    assert load_data("digits", seed=1).fingerprint() == load_data("digits", seed=1).fingerprint()
    assert load_data("digits", seed=1).fingerprint() != load_data("digits", seed=2).fingerprint()


def test_a_folder_of_class_folders(folder: Path) -> None:
    data = load_data(str(folder), image_size=8)
    assert data.classes == ("cats", "dogs")
    assert (len(data.train), len(data.validation)) == (18, 2)
    red = data.train.images[data.train.labels == 0][:, 0]
    assert red.shape[1:] == (8, 8)
    assert bool((red == 255).all())


def test_a_folder_with_its_own_splits(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for i in range(count):
            write_image(root / split / "a" / f"{i}.jpg", (i, 0, 0))
            write_image(root / split / "b" / f"{i}.jpg", (0, i, 0))
    data = load_data(str(root), image_size=8)
    assert data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (6, 4, 2)


def test_few_broken_images_are_listed_and_many_are_refused(folder: Path) -> None:
    (folder / "cats" / "broken.jpg").write_bytes(b"not an image")
    with pytest.raises(UsageError, match=r"1 images cannot be read .*broken\.jpg"):
        load_data(str(folder), image_size=8)
    for i in range(100):
        write_image(folder / "dogs" / f"more{i}.png", (0, 0, 200))
    data = load_data(str(folder), image_size=8)
    (note,) = [note for note in data.notes if note.startswith("not read")]
    assert "broken.jpg" in note


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("I;16", 51400, (200, 200, 200)),
        ("F", 0.2, (51, 51, 51)),
        ("P", 3, None),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_every_kind_of_image_becomes_rgb(tmp_path: Path, mode: str, value: object, expected: object) -> None:
    for name in ("a", "b"):
        for i in range(3):
            path = tmp_path / name / f"{i}.{'tif' if mode in ('CMYK', 'F') else 'png'}"
            path.parent.mkdir(exist_ok=True)
            Image.new(mode, (9, 9), value).save(path)  # type: ignore[arg-type]
    images = load_data(str(tmp_path), image_size=8).train.images
    assert images.shape[1:] == (3, 8, 8)
    if expected is not None:
        assert images[0, :, 4, 4].tolist() == list(expected)  # type: ignore[call-overload]


def npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_npz_of_pixels_and_of_encoded_files_hold_the_same(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 12, 12, 3), dtype=np.uint8)
    labels = np.arange(40) % 4
    files = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.append(np.frombuffer(buffer.getvalue(), np.uint8))
    offsets = np.cumsum([0, *map(len, files)])
    plain = load_data(npz(tmp_path / "a.npz", train_x=pixels, train_y=labels))
    packed = load_data(npz(tmp_path / "b.npz", train_jpeg=np.concatenate(files), train_off=offsets, train_y=labels))
    assert plain.size == 12
    assert plain.fingerprint() == packed.fingerprint()
    assert plain.classes == ("0", "1", "2", "3")


def test_npz_keeps_its_test_split(tmp_path: Path) -> None:
    x, y = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2
    data = load_data(npz(tmp_path / "a.npz", train_x=x, train_y=y, test_x=x[:4], test_y=y[:4]))
    assert data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 4)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_without_labels_is_left_out(tmp_path: Path, split: str) -> None:
    x, y = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8), np.arange(20) % 2
    whole = load_data(npz(tmp_path / "a.npz", train_x=x, train_y=y))
    more = {f"{split}_x": x[:4], f"{split}_y": np.full(4, -1)}
    data = load_data(npz(tmp_path / "b.npz", train_x=x, train_y=y, **more))
    name = {"val": "validation"}.get(split, split)
    assert data.notes == (f"{name} split left out: none of its 4 images has a label",)
    assert data.test is None
    assert data.fingerprint() == whole.fingerprint()  # validation is held out of train, as where there is none
    more[f"{split}_y"][1] = 1
    with pytest.raises(UsageError, match=rf"{split}_y holds labels .*such as -1.*mend the labels or leave"):
        load_data(npz(tmp_path / "c.npz", train_x=x, train_y=y, **more))


def bad_npz(folder: Path, kind: str) -> str:
    x, y = np.zeros((8, 8, 8, 3), np.uint8), np.arange(8) % 2
    wrong = {
        "no labels": {"train_x": x},
        "no images": {"train_y": y},
        "float": {"train_x": x.astype(float), "train_y": y},
        "count": {"train_x": x[:5], "train_y": y},
        "one class": {"train_x": x, "train_y": 0 * y},
        "outside": {"train_x": x, "train_y": y, "test_x": x, "test_y": y + 1},
    }
    return npz(folder / "bad.npz", **wrong[kind])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("no labels", "no train_y among its keys"),
        ("no images", "neither train_x nor train_jpeg"),
        ("float", r"float64 \(8, 8, 8, 3\); it must be uint8"),
        ("count", "5 train images but 8 labels"),
        ("one class", "only one class"),
        ("outside", "test_y holds labels outside"),
    ],
)
def test_npz_that_cannot_be_used(tmp_path: Path, kind: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        load_data(bad_npz(tmp_path, kind))


def test_data_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder; did you mean digits"):
        load_data("digitz")
    with pytest.raises(UsageError, match="no such file or folder"):
        load_data(str(tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="empty or without class folders"):
        load_data(str(tmp_path))
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(UsageError, match=r"neither a folder of class folders nor a \.npz"):
        load_data(str(tmp_path / "text.txt"))
    (tmp_path / "junk.npz").write_bytes(b"PK")
    with pytest.raises(UsageError, match=r"not a readable \.npz"):
        load_data(str(tmp_path / "junk.npz"))
    write_image(tmp_path / "only" / "one" / "1.png", (1, 2, 3))
    write_image(tmp_path / "only" / "one" / "2.png", (1, 2, 3))
    with pytest.raises(UsageError, match="only one class"):
        load_data(str(tmp_path / "only"))
    (tmp_path / "void" / "a").mkdir(parents=True)
    with pytest.raises(UsageError, match="no readable image"):
        load_data(str(tmp_path / "void"))


def test_statistics_take_no_more_memory_for_more_images() -> None:
    images = torch.randint(0, 200, (3000, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images[:, 1] //= 2
    split = Split(images, torch.arange(3000) % 2)
    data = ImageData("noise", split, split, None, ("a", "b"), flip=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        mean, std = data.statistics()
    assert max(event.cpu_memory_usage for event in profile.events()) < images.nbytes  # uint8, not as floats
    pixels = images.double() / 255
    assert torch.allclose(torch.tensor(mean).double(), pixels.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(torch.tensor(std).double(), pixels.std((0, 2, 3)), atol=1e-4)
    black = Split(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2))
    assert ImageData("black", black, black, None, ("a", "b"), flip=True).statistics() == ((0.0,) * 3, (0.001,) * 3)


def test_view_normalises_and_resizes() -> None:
    images = torch.full((2, 3, 8, 8), 255, dtype=torch.uint8)
    seen = View(4, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))(images)
    assert seen.shape == (2, 3, 4, 4)
    assert torch.allclose(seen, torch.full_like(seen, 2.0))


def test_resize_is_that_of_pil(digits: ImageData) -> None:
    image = digits.train.images[0]
    theirs = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((20, 20), Image.Resampling.BILINEAR)
    for stored in (image, image.float()):
        ours = resize(stored[None], 20)[0].permute(1, 2, 0)
        assert (ours.float() - torch.from_numpy(np.asarray(theirs).copy())).abs().max() <= 1


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits")


@given(seed=st.integers(0, 1000), flip=st.booleans())
def test_augmented_images_are_shifted_and_mirrored_copies(seed: int, flip: bool) -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(3, 1, 16, 16)
    found = Crops.draw(3, 16, torch.Generator().manual_seed(seed), flip=flip)(images)
    assert found.shape == images.shape
    centre = found[:, 0, 4:12, 4:12].to(torch.int32)
    step = centre[:, :, 1:] - centre[:, :, :-1]
    assert bool((step.abs() == 1).all())  # neighbours stay neighbours
    assert bool((step == 1).all()) or flip


def test_an_epoch_shows_every_image_once(digits: ImageData) -> None:
    generator = torch.Generator().manual_seed(0)
    epoch = list(batches(digits.train, 100, generator, torch.device("cpu"), flip=False))
    labels = torch.cat([batch.labels for batch in epoch])
    assert torch.equal(torch.bincount(labels), torch.bincount(digits.train.labels))
    assert [batch.whole for batch in epoch] == [len(batch.labels) for batch in epoch]
