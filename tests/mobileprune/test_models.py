"""Finding models by name and loading their weights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mobileprune.errors import MobilepruneError, UsageError
from mobileprune.models import ModelSource, check_outputs, find_model, load_checkpoint
from mobileprune.progress import Quiet
from mobileprune.request import Request, open_or_create
from mobileprune.stages.context import Context
from mobileprune.stages.train import check_classifier, train_base

TINY = Path(__file__).parent / "tiny_net.py"


@pytest.mark.parametrize(
    ("spec", "library"),
    [
        ("resnet20", "mobileprune"),
        ("torchvision:resnet18", "torchvision"),
        ("timm:mobilenetv3_small_050", "timm"),
        ("mobilenetv3_small_050", "timm"),
        ("shufflenet_v2_x0_5", "torchvision"),
    ],
)
def test_names_are_found_and_built_with_the_classes_of_the_data(spec: str, library: str) -> None:
    source = find_model(spec)
    assert source.library == library
    model = source.build(7)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    assert not model.training


def test_a_file_and_its_factory() -> None:
    source = find_model(f"{TINY}:tiny", ["blocks=1"])
    assert source.arguments == {"blocks": 1}
    assert source.build(5)(torch.zeros(1, 3, 16, 16)).shape == (1, 5)
    assert source.normalisation() == ((0.3, 0.3, 0.3), (0.4, 0.4, 0.4))
    assert not source.has_weights
    assert [name for name in sys.modules if name == "tiny_net"] == []  # a user's file hides no installed module


def test_arguments_are_literals_files_or_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w.bin").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    source = find_model(f"{TINY}:tiny", ["a=1.5", "b=(1, 2)", "c=text", "checkpoint=w.bin"])
    assert source.arguments == {"a": 1.5, "b": (1, 2), "c": "text", "checkpoint": str(tmp_path / "w.bin")}
    assert source.has_weights


_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("spec", "arguments", "expected"),
    [
        ("timm:mobilenetv1_100", {"pretrained": True}, _HALF),
        ("timm:tf_efficientnet_lite0", {"pretrained": True}, _HALF),
        ("timm:resnet18", {"pretrained": True}, _IMAGENET),
        ("timm:resnet18", {"pretrained": True, "pretrained_cfg_overlay": {"mean": (0.1,) * 3, "std": (0.2,) * 3}},
         ((0.1,) * 3, (0.2,) * 3)),
        ("torchvision:resnet18", {"weights": "ResNet18_Weights.IMAGENET1K_V1"}, _IMAGENET),
        ("torchvision:efficientnet_v2_l", {"weights": "DEFAULT"}, _HALF),
    ],
)  # fmt: skip
def test_weights_are_shown_what_they_expect(spec: str, arguments: dict[str, object], expected: object) -> None:
    assert find_model(spec, arguments).normalisation() == expected
    if len(arguments) == 1:
        assert find_model(spec).normalisation() is None
        assert find_model(spec).normalisation(checkpoint=True) == expected


def test_weights_that_there_are_not() -> None:
    with pytest.raises(UsageError, match=r"Invalid pretrained tag \(no_such\) for resnet18; check --model-arg"):
        find_model("timm:resnet18", {"pretrained": True, "pretrained_cfg": "no_such"}).normalisation()


def test_building_a_network_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    request = Request(model=f"{TINY}:tiny", image_size=16)
    ctx = Context(open_or_create(tmp_path / "run", request), Quiet())
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second = ctx.new_model().state_dict(), ctx.new_model().state_dict()
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_checkpoint_of_a_library_network_sees_what_the_library_shows_and_that_is_said(tmp_path: Path) -> None:
    source = find_model("timm:test_resnet")
    torch.save(source.build(10).state_dict(), tmp_path / "w.pt")
    request = Request(
        model="timm:test_resnet", checkpoint=tmp_path / "w.pt", image_size=16, training_precision="float32"
    )
    ctx = Context(open_or_create(tmp_path / "run", request), Quiet())
    assert (ctx.view.mean, ctx.view.std) == _HALF
    train_base(ctx)
    (note,) = [entry["key"] for entry in ctx.run.journal.all("note")]
    assert "normalisation of timm's own weights, mean 0.5, 0.5, 0.5 and std 0.5, 0.5, 0.5" in note
    own = Context(open_or_create(tmp_path / "own", Request(model="timm:test_resnet", image_size=16)), Quiet())
    assert (own.view.mean, own.view.std) == own.data.statistics()


def test_a_classifier_that_was_never_trained_is_not_taken_as_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelSource, "build", lambda *_: pytest.fail("no weights need be fetched to see it"))
    named = {"model": "timm:mobilenetv3_small_050", "image_size": 16}

    def context(name: str, arguments: tuple[str, ...], **options: object) -> Context:
        request = Request(**named, model_arguments=arguments, **options)  # type: ignore[arg-type]
        return Context(open_or_create(tmp_path / name, request), Quiet())

    with pytest.raises(UsageError, match=r"weights know 1000 classes and the data has 10, .* --base-epochs"):
        train_base(context("given", ("pretrained=True",)))
    check_classifier(context("trained", ("pretrained=True",), base_epochs=1))
    check_classifier(context("other", ("pretrained=True", "pretrained_cfg={'num_classes': 10}")))
    check_classifier(context("plain", (), base_epochs=0))


def test_torchvision_refuses_other_classes_than_its_weights_know() -> None:
    with pytest.raises(MobilepruneError, match="'num_classes' expected value 1000 but got 10"):
        find_model("torchvision:resnet18", ["weights=DEFAULT"]).build(10)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("resnet2o", "no model 'resnet2o' in any library; did you mean .*resnet20"),
        ("timm:mobilnetv3_small_050", "did you mean mobilenetv3_small_050"),
        ("resnet18", "more than one library; write torchvision:resnet18 or timm:resnet18"),
        ("keras:resnet18", "'keras' is no source of models"),
        ("nowhere/net.py:make", "no file nowhere/net.py"),
        (f"{TINY}", "names no factory"),
        (f"{TINY}:missing", "has no function 'missing'; it has .*tiny"),
        ("qqqqqqqq", "no model 'qqqqqqqq' in any library; use torchvision:NAME"),
    ],
)
def test_what_cannot_be_found_is_one_sentence(spec: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        find_model(spec)


def test_user_code_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(MobilepruneError, match=r"broken.* failed: RuntimeError: the weights are on another machine"):
        find_model(f"{TINY}:broken").build(10)
    with pytest.raises(UsageError, match=r"--model-arg 'blocks' is not key=value"):
        find_model(f"{TINY}:tiny", ["blocks"])
    (tmp_path / "bad.py").write_text("import no_such_package")
    with pytest.raises(MobilepruneError, match="cannot be imported: ModuleNotFoundError"):
        find_model(f"{tmp_path / 'bad.py'}:make")


def test_outputs_are_checked_against_the_data() -> None:
    model = find_model(f"{TINY}:tiny_without_classes").build(10)
    with pytest.raises(UsageError, match=r"gives \(2, 7\) for 10 classes"):
        check_outputs(model, torch.zeros(2, 3, 16, 16), 10, "it")
    with pytest.raises(UsageError, match="fails on a 16x16 image"):
        check_outputs(model, torch.zeros(2, 4, 16, 16), 10, "it")
    check_outputs(model, torch.zeros(2, 3, 16, 16), 7, "it")


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


@pytest.mark.parametrize("form", ["safetensors", "plain", "wrapped"])
def test_checkpoints_in_the_forms_people_have(tmp_path: Path, form: str) -> None:
    torch.manual_seed(1)
    trained, model = small(), small()
    state = trained.state_dict()
    if form == "safetensors":
        path = tmp_path / "w.safetensors"
        save_file(state, path)
    else:
        path = tmp_path / "w.pt"
        torch.save(state if form == "plain" else {"state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    load_checkpoint(model, path)
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_checkpoint_that_does_not_fit_names_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    state = small().state_dict()
    state["0.weight"] = torch.zeros(9, 3, 1, 1)
    state["extra"] = torch.zeros(1)
    del state["1.bias"]
    torch.save(state, path)
    with pytest.raises(UsageError) as error:
        load_checkpoint(small(), path)
    for part in ("missing: 1.bias", "not in the model: extra", "other shape: 0.weight is (9, 3, 1, 1)"):
        assert part in str(error.value)


def test_a_checkpoint_with_code_in_it_is_refused_and_the_code_not_run(tmp_path: Path) -> None:
    path, witness = tmp_path / "w.pt", tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (witness,))

    torch.save({"state_dict": Bomb()}, path)
    with pytest.raises(UsageError, match="cannot be read as tensors alone"):
        load_checkpoint(small(), path)
    assert not witness.exists()
    with pytest.raises(UsageError, match="no checkpoint"):
        load_checkpoint(small(), tmp_path / "nowhere.pt")
