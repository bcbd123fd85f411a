"""The places where people keep images: archives, libraries, their own code; and what is said of odd content."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from test_data import write_image

from mobileprune._torchvision import import_torchvision
from mobileprune.data import ImageData, describe_data, load_data
from mobileprune.errors import MobilepruneError, UsageError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A set with its own validation split, 24 + 8 images of two classes, none like another."""
    root = tmp_path / "photos"
    for split, count in (("train", 12), ("val", 4)):
        for i in range(count):
            write_image(root / split / "cats" / f"{i}.png", (200, 10 * i, 50 if split == "val" else 0))
            write_image(root / split / "dogs" / f"{i}.png", (0, 10 * i, 250 if split == "val" else 200))
    return root


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "tgz", "tar.xz", "tar.bz2"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_an_archive_holds_what_its_folder_holds(tree: Path, tmp_path: Path, kind: str, wrapped: bool) -> None:
    file = tmp_path / f"set.{kind}"
    packing = {"tgz": "gz", "tar": ""}.get(kind, kind.rpartition(".")[2])
    with tarfile.open(file, f"w:{packing}") as archive:  # type: ignore[call-overload]
        archive.add(tree, arcname="some/photos" if wrapped else ".")
    packed, plain = load_data(str(file), image_size=8), load_data(str(tree), image_size=8)
    assert packed.fingerprint() == plain.fingerprint()
    assert (packed.name, packed.classes) == ("set", ("cats", "dogs"))


def test_an_archive_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="not a readable tar archive"):
        load_data(str(tmp_path / "a.tar"))
    (tmp_path / "a.tar.gz").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="cannot be unpacked"):
        load_data(str(tmp_path / "a.tar.gz"))


def test_hidden_files_are_left_alone_and_folders_below_a_class_belong_to_it(tree: Path) -> None:
    before = load_data(str(tree), image_size=8)
    (tree / "train" / "cats" / "._1.png").write_bytes(b"the other half of a copy from a Mac")
    assert load_data(str(tree), image_size=8).fingerprint() == before.fingerprint()
    write_image(tree / "train" / "cats" / "indoors" / "1.png", (3, 4, 5))
    assert len(load_data(str(tree), image_size=8).train) == len(before.train) + 1


def test_a_class_that_only_validation_has_is_refused(tree: Path) -> None:
    write_image(tree / "val" / "birds" / "1.png", (1, 1, 1))
    with pytest.raises(UsageError, match="class 'birds' is not among the training classes"):
        load_data(str(tree), image_size=8)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "names", [("Train", "Val", "Test"), ("Training", "Validation", "Testing"), ("TRAIN", "valid", "test")]
)
def test_split_folders_however_they_are_written(tmp_path: Path, names: tuple[str, str, str], packed: bool) -> None:
    root = tmp_path / "photos"
    for name, count in zip(names, (5, 2, 1), strict=True):
        for i in range(count):
            write_image(root / name / "cats" / f"{i}.png", (200, 10 * i, 30 * count))
            write_image(root / name / "dogs" / f"{i}.png", (0, 10 * i, 30 * count))
    if packed:
        with tarfile.open(tmp_path / "photos.tar", "w") as archive:
            archive.add(root, arcname="photos")
    data = load_data(str(tmp_path / "photos.tar" if packed else root), image_size=8)
    assert data.classes == ("cats", "dogs")
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 10, "validation": 4, "test": 2}
    assert data.notes == ()


def test_class_folders_beside_a_validation_folder(tree: Path) -> None:
    expected = load_data(str(tree), image_size=8)
    for name in ("cats", "dogs"):
        (tree / "train" / name).rename(tree / name)
    (tree / "train").rmdir()
    assert load_data(str(tree), image_size=8).fingerprint() == expected.fingerprint()


def test_a_second_folder_of_a_split_is_said_to_be_left_out(tree: Path) -> None:
    write_image(tree / "Validation" / "cats" / "1.png", (1, 1, 1))
    data = load_data(str(tree), image_size=8)
    assert (len(data.validation), data.notes) == (8, (f"{tree}/Validation is not used: val is there",))


def test_folders_that_hold_the_same_class_folders_are_no_classes(tree: Path) -> None:
    (tree / "train").rename(tree / "fold 1")
    (tree / "val").rename(tree / "fold 2")
    reason = "'fold 1' and 'fold 2' both hold a folder 'cats', so they are splits and no classes; call such folders"
    with pytest.raises(UsageError, match=reason):
        load_data(str(tree), image_size=8)
    for fold in ("fold 1", "fold 2"):  # if they are classes after all
        (tree / "train").mkdir(exist_ok=True)
        (tree / fold).rename(tree / "train" / fold)
    assert load_data(str(tree), image_size=8).classes == ("fold 1", "fold 2")


def test_class_folders_may_hold_folders(tmp_path: Path) -> None:
    for i, place in enumerate(("cats/indoors", "cats/persian", "dogs/poodle", "dogs/indoors", "dogs/terrier")):
        for j in range(2):
            write_image(tmp_path / place / f"{j}.png", (9 * i, 9 * j, 0))
    assert load_data(str(tmp_path), image_size=8).classes == ("cats", "dogs")


def test_images_in_two_splits_are_reported(tree: Path) -> None:
    assert load_data(str(tree), image_size=8).notes == ()
    (tree / "val" / "dogs" / "copy.png").write_bytes((tree / "train" / "dogs" / "3.png").read_bytes())
    (note,) = load_data(str(tree), image_size=8).notes
    assert note.startswith("leak: 1 of 9 validation images are train images, too, such as")
    assert f"{tree}/val/dogs/copy.png = {tree}/train/dogs/3.png" in note


def test_torchvision_by_name(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("val", 2)):
        for c, wnid in enumerate(("n01440764", "n02102040")):
            for i in range(count):
                write_image(tmp_path / "imagenette2" / split / wnid / f"{i}.JPEG", (100 * c, 20 * i, 7 * count))
    data = load_data("torchvision:Imagenette", image_size=8, root=tmp_path)
    assert data.classes == ("tench", "English springer")
    assert (len(data.train), len(data.validation), data.test, data.flip) == (10, 4, None, True)
    with pytest.raises(UsageError, match=r"not in .*nowhere.* allow the download with --download, or name its folder"):
        load_data("torchvision:Imagenette", root=tmp_path / "nowhere")
    with pytest.raises(UsageError, match="torchvision has no such data set; did you mean CIFAR10"):
        load_data("torchvision:CIFAR1O")
    with pytest.raises(UsageError, match="no train split of labelled images"):
        load_data("torchvision:SBU")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("EMNIST", "balanced"),
        ("OxfordIIITPet", "trainval"),
        ("Places365", "train-standard"),
        ("HMDB51", "annotation_path"),
    ],
)
def test_a_torchvision_set_without_a_split_that_is_called_train(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=rf"torchvision:{name}: .*{reason}.*write a file\.py:factory"):
        load_data(f"torchvision:{name}", root=tmp_path)


def test_a_torchvision_set_whose_validation_split_is_called_valid(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("valid", 3), ("test", 2)):
        for i in range(count):
            write_image(tmp_path / "country211" / split / "AD" / f"{i}.jpg", (200, 20 * i, 9 * count))
            write_image(tmp_path / "country211" / split / "AE" / f"{i}.jpg", (0, 20 * i, 9 * count))
    data = load_data("torchvision:Country211", image_size=8, root=tmp_path)
    assert data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 6, 4)


def test_torchvision_labels_of_several_numbers(tmp_path: Path) -> None:
    """QMNIST's targets hold the digit, then who wrote it and where."""
    raw = tmp_path / "QMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    labels = np.stack([np.arange(20) % 10, *np.ones((7, 20))], axis=1).astype(">i4")
    for split in ("train", "test"):
        for kind, code, array in (("images-idx3-ubyte", 0x803, pixels), ("labels-idx2-int", 0xC02, labels)):
            header = np.array([code, *array.shape], ">i4").tobytes()
            (raw / f"qmnist-{split}-{kind}").write_bytes(header + array.tobytes())
    data = load_data("torchvision:QMNIST", root=tmp_path)
    assert (len(data.classes), data.size, data.flip) == (10, 8, False)
    assert data.test is not None
    assert data.test.labels.tolist() == [i % 10 for i in range(20)]


def test_a_hugging_face_set_on_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    from PIL import Image

    pictures = [Image.new("RGB", (12, 10), (10 * i, 0, 200 if i % 2 else 0)) for i in range(20)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["even", "odd"])})
    whole = datasets.Dataset.from_dict({"image": pictures, "label": [i % 2 for i in range(20)]}, features=features)
    datasets.DatasetDict({"train": whole, "test": whole.select(range(4))}).save_to_disk(tmp_path / "set")
    data = load_data(f"hf:{tmp_path / 'set'}", image_size=8)
    assert (data.classes, data.name) == (("even", "odd"), "set")
    assert data.test is not None
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 4)
    blue = data.train.images[:, 2, 4, 4]
    assert torch.equal(blue > 100, data.train.labels == 1)
    assert any(note.startswith("leak: ") for note in data.notes)
    with pytest.raises(UsageError, match="cannot be loaded"):
        load_data(f"hf:{tmp_path / 'nothing'}")
    for kept_back in (-1, None):
        labels = {"image": pictures, "label": [kept_back] * 20}
        secret = datasets.Dataset.from_dict(labels, features=features)
        datasets.DatasetDict({"train": whole, "test": secret}).save_to_disk(tmp_path / f"contest{kept_back}")
        contest = load_data(f"hf:{tmp_path / f'contest{kept_back}'}", image_size=8)
        assert contest.test is None
        assert contest.notes == ("test split left out: none of its 20 images has a label",)


_FACTORY = """
import numpy as np, torch
from torch.utils.data import DataLoader, TensorDataset
CLASSES = ("dark", "bright")
x = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
y = np.arange(20) % 2
tensors = torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255
sets = TensorDataset(tensors, torch.from_numpy(y))
def arrays(): return x, y
def mapping(): return {"train": sets}
def pair(): return [sets]
def loader(): return [DataLoader(sets, batch_size=3), None]
def outside(): return x, y + 1
def counts(): return x, y[:5]
def empty(): return x[:0], y[:0]
def number(): return 3
def normalised(): return 4 * x.astype(float) - 2, y
def several(): return TensorDataset(tensors, torch.eye(2)[y])
def fails(): raise RuntimeError("the disk is not plugged in")
"""


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(_FACTORY)
    return path


def test_the_users_own_function(factory: Path) -> None:
    expected = load_data(f"{factory}:arrays")
    assert expected.classes == ("dark", "bright")
    assert (expected.size, len(expected.train), len(expected.validation)) == (8, 18, 2)
    for function in ("mapping", "pair", "loader"):
        assert load_data(f"{factory}:{function}").fingerprint() == expected.fingerprint(), function


_ONE_HANDLE = """
import io, tarfile, time
import numpy as np
from PIL import Image
class Slow(io.FileIO):
    def seek(self, *where):
        found = super().seek(*where)
        time.sleep(0.0005)  # another thread's turn
        return found
class Frames:
    def __init__(self):
        self.file = Slow({file!r})
        self.tar = tarfile.open(fileobj=self.file)
        self.members = self.tar.getmembers()
    def __len__(self): return len(self.members)
class Pixels(Frames):
    def __getitem__(self, i):
        return np.asarray(Image.open(self.tar.extractfile(self.members[i]))), i % 2
class Pictures(Frames):
    def __getitem__(self, i):
        return Image.open(self.tar.extractfile(self.members[i])), i % 2  # not yet read by PIL
def pixels(): return Pixels()
def pictures(): return Pictures()
"""


@pytest.mark.parametrize("function", ["pixels", "pictures"])
def test_a_data_set_that_reads_from_one_file_handle(tmp_path: Path, function: str) -> None:
    with tarfile.open(tmp_path / "frames.tar", "w") as archive:
        for i in range(40):
            write_image(tmp_path / f"{i}.bmp", (6 * i, 0, 0), (80, 80))  # more than is read ahead
            archive.add(tmp_path / f"{i}.bmp")
    file = tmp_path / "frames.py"
    file.write_text(_ONE_HANDLE.format(file=str(tmp_path / "frames.tar")))
    data = load_data(f"{file}:{function}", image_size=8)
    assert not data.notes
    found = torch.cat([data.train.images, data.validation.images])[:, 0, 4, 4]
    assert found.sort().values.tolist() == [6 * i for i in range(40)]
    assert torch.equal(data.train.images[:, 0, 4, 4] // 6 % 2, data.train.labels)


_RENUMBERED = """
from torchvision.datasets import ImageFolder
CLASSES = {names}
def swapped(): return ImageFolder({root!r}, target_transform={{0: 1, 1: 0}}.get)
"""


@pytest.mark.parametrize(("names", "expected"), [(None, ("0", "1")), (("dog", "cat"), ("dog", "cat"))])
def test_labels_are_those_behind_a_target_transform(
    tree: Path, tmp_path: Path, names: tuple[str, ...] | None, expected: tuple[str, ...]
) -> None:
    import_torchvision()  # beside a CPU-only torch a plain import fails
    file = tmp_path / "renumbered.py"
    file.write_text(_RENUMBERED.format(names=names, root=str(tree / "train")))
    data = load_data(f"{file}:swapped", image_size=8)
    assert data.classes == expected
    assert torch.equal(data.train.images[:, 0, 4, 4] == 200, data.train.labels == 1)  # the cats are red


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("outside", r"train_y holds labels outside 0\.\.1 \(such as 2\): the set has 2 classes"),
        ("counts", "20 images but 5 labels"),
        ("empty", "empty; give images"),
        ("number", "is a int: give a data set of"),
        ("normalised", r"an image is float64 .*not yet normalised"),
        ("several", r"the label of image 0 is a Tensor .*give one class number"),
        ("fails", "RuntimeError: the disk is not plugged in"),
        ("nothing", "the file has no function 'nothing'"),
    ],
)
def test_a_function_that_gives_no_data(factory: Path, function: str, reason: str) -> None:
    with pytest.raises(MobilepruneError, match=reason):
        load_data(f"{factory}:{function}")


def test_labels_of_a_model_that_knows_more_classes(tree: Path, tmp_path: Path) -> None:
    names = tmp_path / "labels.txt"
    names.write_text("birds\ndogs\nfish\ncats\n")
    plain, mapped = load_data(str(tree), image_size=8), load_data(str(tree), image_size=8, labels=str(names))
    assert mapped.classes == ("birds", "dogs", "fish", "cats")
    assert torch.equal(mapped.train.labels, torch.tensor([3, 1])[plain.train.labels])
    assert torch.equal(mapped.validation.labels, torch.tensor([3, 1])[plain.validation.labels])
    names.write_text("cat\ndogs\n")
    with pytest.raises(UsageError, match="class 'cats' is none of its 2 names; did you mean 'cat'"):
        load_data(str(tree), image_size=8, labels=str(names))
    names.write_text("cats\ndogs\ncats\n")
    with pytest.raises(UsageError, match="'cats' stands there twice"):
        load_data(str(tree), image_size=8, labels=str(names))


def test_wordnet_folders_are_outputs_of_an_imagenet_model(tmp_path: Path) -> None:
    for wnid in ("n01440764", "n01443537", "n15075141"):
        for i in range(2):
            write_image(tmp_path / wnid / f"{i}.png", (i, int(wnid[-2:]), 0))
    data = load_data(str(tmp_path), image_size=8, labels="imagenet-1k")
    assert len(data.classes) == 1000
    assert sorted(set(data.train.labels.tolist())) == [0, 1, 999]  # tench, goldfish, toilet tissue


def test_what_describe_says(tree: Path) -> None:
    write_image(tree / "train" / "dogs" / "twin.png", (0, 10, 200))
    (tree / "val" / "cats" / "bad.png").write_bytes(b"no")
    with pytest.raises(UsageError, match="1 images cannot be read"):
        describe_data(str(tree), image_size=8)
    (tree / "val" / "cats" / "bad.png").unlink()
    found = describe_data(str(tree), image_size=8)
    assert found.splits["train"].images == 25
    assert found.splits["train"].smallest_class == ("cats", 12)
    assert found.sides == (14, 14, 14)
    assert found.modes == {"RGB": 25}
    text = "\n".join(found.lines())
    assert "1 training images are copies of others" in text
    assert "no test split" in text
    assert found.to_dict()["read_at"] == 8
    digits = describe_data("digits")
    assert "no: mirrored they mean another thing" in "\n".join(digits.lines())
    assert any("359 of 1797 training images are held out" in note for note in digits.notes)


def test_a_set_smaller_than_a_batch_trains(tree: Path) -> None:
    from mobileprune.training.batches import View
    from mobileprune.training.finetune import Progress, Schedule, fit

    data: ImageData = load_data(str(tree), image_size=8)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    before = model[1].weight.detach().clone()
    seen: list[Progress] = []
    schedule = Schedule(epochs=2, learning_rate=0.01, batch_size=512)
    fit(model, data, View(8, (0.5,) * 3, (0.5,) * 3), schedule, seed=0, progress=seen.append)
    assert [p.seen for p in seen] == [24, 48]
    assert not torch.equal(before, model[1].weight)
    assert np.isfinite(seen[-1].loss)
