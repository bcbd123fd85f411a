"""Finding and building the user's model: built in, ``torchvision:NAME``, ``timm:NAME`` or ``file.py:factory``."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from mobileprune import zoo
from mobileprune._torchvision import import_timm, import_torchvision
from mobileprune.errors import MobilepruneError, UsageError

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
_IMAGENET: Normalisation = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Arguments of a constructor that say "the weights come with it"; then the base is not trained.
_WEIGHT_ARGUMENTS = ("checkpoint", "weights", "pretrained", "ckpt", "checkpoint_path")
_CLASS_ARGUMENTS = ("num_classes", "classes", "n_classes", "num_class")


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from; enough to build the same architecture again in another process."""

    library: str  # "mobileprune", "torchvision", "timm", the path of a Python file, or "module": given as an object
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spec(self) -> str:
        """The form that ``find_model`` reads."""
        return f"{self.library}:{self.name}"

    @property
    def has_weights(self) -> bool:
        """Whether the arguments make the constructor load trained weights."""
        return self.library == "module" or any(self.arguments.get(name) for name in _WEIGHT_ARGUMENTS)

    def build(self, classes: int) -> nn.Module:
        """Make the model with ``classes`` outputs, in eval mode. Raises MobilepruneError when its code fails."""
        factory = self._factory()
        arguments = dict(self.arguments)
        accepted = _class_argument(factory)
        if accepted and accepted not in arguments:
            arguments[accepted] = classes
        try:
            model = factory(**arguments)
        except MobilepruneError:
            raise
        except Exception as error:  # the user's code may raise anything
            shown = ", ".join(f"{k}={v!r}" for k, v in arguments.items())
            raise MobilepruneError(
                f"{self.spec}({shown}) failed: {type(error).__name__}: {error}; check --model-arg"
            ) from error
        if not isinstance(model, nn.Module):
            raise UsageError(f"{self.spec} gave a {type(model).__name__}, not a torch.nn.Module")
        return model.eval()

    @property
    def classes_of_weights(self) -> int | None:
        """How many classes the weights know with which timm's constructor begins; None where there are none.

        timm drops the classifier of weights that know others than were asked for; torchvision refuses to build it.
        """
        if self.library != "timm" or not self.arguments.get("pretrained"):
            return None
        return int(self._timm_configuration().num_classes)

    def normalisation(self, *, checkpoint: bool = False) -> Normalisation | None:
        """The mean and std that trained weights expect: the file's MEAN and STD, or the library's; None when unknown.

        checkpoint: whether weights are loaded that the constructor does not know of; of a library's network they are
        taken to expect what the library's own weights do.
        """
        if self.library == "mobileprune":
            return None
        if self.library == "module":
            return (self.arguments["mean"], self.arguments["std"]) if "mean" in self.arguments else None
        if self.library in ("torchvision", "timm"):
            return self._library_normalisation() if checkpoint or self.has_weights else None
        module = import_file(Path(self.library))
        if hasattr(module, "MEAN") and hasattr(module, "STD"):
            return tuple(map(float, module.MEAN)), tuple(map(float, module.STD))
        return None

    def assumed_normalisation(self) -> str | None:
        """What a person should hear of the normalisation of weights from a checkpoint; None where it is not assumed."""
        if self.library not in ("torchvision", "timm"):
            return None
        mean, std = (", ".join(f"{value:.3g}" for value in values) for values in self._library_normalisation())
        return (
            f"the checkpoint is taken to expect the normalisation of {self.library}'s own weights, mean {mean} and std "
            f"{std}: name a model file with MEAN and STD where it expects another"
        )

    def _library_normalisation(self) -> Normalisation:
        """What the weights that the arguments name expect, else what the library's usual ones do, else ImageNet's."""
        if self.library == "timm":
            found = self._timm_configuration()
        else:
            known = import_torchvision().models.get_model_weights(self.name).__members__
            asked = str(self.arguments.get("weights")).rpartition(".")[2]
            weights = known.get(asked) or known.get("DEFAULT")
            found = weights.transforms() if weights else None
        mean, std = (getattr(found, name, None) for name in ("mean", "std"))
        return (tuple(map(float, mean)), tuple(map(float, std))) if mean and std else _IMAGENET

    def _timm_configuration(self) -> Any:
        """What timm knows of the weights that the arguments name, or of the usual ones; asks no network."""
        named = (self.arguments.get(name) for name in ("pretrained_cfg", "pretrained_cfg_overlay"))
        try:
            return import_timm().models.resolve_pretrained_cfg(self.name, *named)
        except RuntimeError as error:
            raise UsageError(f"{self.spec}: {str(error).rstrip('.')}; check --model-arg pretrained_cfg") from error

    def _factory(self) -> Callable[..., Any]:
        if self.library == "mobileprune":
            return zoo.MODELS[self.name]
        if self.library == "module":
            from mobileprune.given import module_of

            return module_of
        if self.library == "torchvision":
            models = import_torchvision().models
            return lambda **kwargs: models.get_model(self.name, **kwargs)
        if self.library == "timm":
            timm = import_timm()
            return lambda **kwargs: timm.create_model(self.name, **kwargs)
        factory: Callable[..., Any] = getattr(import_file(Path(self.library)), self.name)
        return factory


def _class_argument(factory: Callable[..., Any]) -> str | None:
    parameters = inspect.signature(factory).parameters
    named = next((name for name in _CLASS_ARGUMENTS if name in parameters), None)
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return named or ("num_classes" if takes_any else None)


def find_model(spec: str, arguments: Sequence[str] | Mapping[str, Any] = ()) -> ModelSource:
    """Resolve what the user wrote. Raises UsageError with near names for one that is not known."""
    if not isinstance(arguments, Mapping):
        arguments = dict(_parse_argument(text) for text in arguments)
    library, colon, name = spec.rpartition(":")
    if colon and library.endswith(".py"):
        return _find_in_file(Path(library), name, arguments)
    if colon and library not in _LISTINGS:
        raise UsageError(f"{spec!r}: {library!r} is no source of models; use torchvision:, timm: or path/to/file.py:")
    if not colon and spec.endswith(".py"):
        raise UsageError(f"{spec!r} names no factory; write {spec}:NAME, where NAME is a function that makes the model")
    if colon:
        _require_known(name, _LISTINGS[library](), library)
        return ModelSource(library, name, arguments)
    owners = [library for library, listing in _LISTINGS.items() if spec in listing()]
    if "mobileprune" in owners or len(owners) == 1:
        return ModelSource(owners[0], spec, arguments)
    if owners:
        raise UsageError(f"{spec!r} is in more than one library; write " + " or ".join(f"{o}:{spec}" for o in owners))
    _require_known(spec, sorted({n for listing in _LISTINGS.values() for n in listing()}), "any library")
    raise AssertionError("unreachable")


def _require_known(name: str, known: Sequence[str], where: str) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else "; use torchvision:NAME, timm:NAME or file.py:factory"
    raise UsageError(f"no model {name!r} in {where}{hint}")


_LISTINGS: dict[str, Callable[[], Sequence[str]]] = {
    "mobileprune": lambda: sorted(zoo.MODELS),
    "torchvision": lambda: list(import_torchvision().models.list_models()),
    "timm": lambda: list(import_timm().list_models()),
}


def _find_in_file(path: Path, name: str, arguments: Mapping[str, Any]) -> ModelSource:
    if not path.is_file():
        raise UsageError(f"no file {path}: --model takes path/to/file.py:factory")
    module = import_file(path)
    factory = getattr(module, name, None)
    if not callable(factory):
        own = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
        raise UsageError(f"{path} has no function {name!r}; it has {', '.join(own) or 'none'}")
    return ModelSource(str(path.resolve()), name, arguments)


def import_file(path: Path) -> ModuleType:
    path = path.resolve()
    # One module per file, under a name that cannot hide an installed package of the same name.
    name = f"_user_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's code may raise anything
        del sys.modules[name]
        raise MobilepruneError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _parse_argument(text: str) -> tuple[str, Any]:
    """``key=value`` with a Python literal or else a string; an existing file becomes an absolute path."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise UsageError(f"--model-arg {text!r} is not key=value")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, str(Path(value).resolve()) if Path(value).is_file() else value


def load_checkpoint(model: nn.Module, path: Path) -> None:
    """Load weights into ``model`` from .safetensors or a torch file (read with weights_only, so no code runs).

    Common wrappers ("state_dict", "model", the "module." prefix) are undone. Raises UsageError that names the keys
    which do not fit.
    """
    if not path.is_file():
        raise UsageError(f"no checkpoint {path}")
    state = _read_state(path)
    expected = model.state_dict()
    shaped = {k: tuple(v.shape) for k, v in expected.items()}
    missing = [k for k in shaped if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in shaped]
    wrong = [
        f"{k} is {tuple(v.shape)}, the model's {shaped[k]}"
        for k, v in state.items()
        if k in shaped and tuple(v.shape) != shaped[k]
    ]
    problems = [
        f"{label} {', '.join(keys[:3])}{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}"
        for label, keys in (("missing:", missing), ("not in the model:", unexpected), ("other shape:", wrong))
        if keys
    ]
    if problems:
        raise UsageError(f"checkpoint {path} does not fit the model; {'; '.join(problems)}")
    expected.update(state)  # the state dict itself carries versions that some networks ask for
    model.load_state_dict(expected)


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many kinds for a damaged file
        reason = str(error).splitlines()[0]
        raise UsageError(f"checkpoint {path} cannot be read as tensors alone: {reason}") from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UsageError(f"checkpoint {path} holds no state dict of tensors")
    return {k.removeprefix("module."): v for k, v in state.items()}


def check_outputs(model: nn.Module, example: Tensor, classes: int, spec: str) -> None:
    """Run ``model`` once. Raises UsageError unless it gives (N, classes) logits."""
    try:
        with torch.inference_mode():
            output = model(example)
    except Exception as error:  # the user's code may raise anything
        size = "x".join(map(str, example.shape[2:]))
        reason = str(error).splitlines()[0]
        raise UsageError(f"{spec} fails on a {size} image: {reason}; try another --image-size") from error
    if not isinstance(output, Tensor) or output.shape != (example.shape[0], classes):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(
            f"{spec} gives {got} for {classes} classes; it must give ({example.shape[0]}, {classes}) logits: "
            "set its number of classes with --model-arg, or name its outputs with --labels"
        )
