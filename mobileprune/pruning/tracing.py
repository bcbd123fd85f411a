"""Which positions of which layers hold the same channel: labels that follow every tensor through the network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode, _pop_mode_temporarily

from mobileprune.pruning.layers import (
    Axis,
    Inputs,
    axes_of,
    axis_sizes,
    bare_parameters,
    like,
    outline,
    outputs,
    parameter_dim,
    tensors_in,
)

FIXED = 0  # the label of what cannot be cut: the network's input, constants, what an unknown operation gives

_POINTWISE = {"hardswish", "hardswish_", "_prelu_kernel", "rsub"}  # element by element, though torch does not say so
_SAME = {
    "clone", "contiguous", "detach", "alias", "_to_copy", "lift_fresh", "dropout", "native_dropout", "to", "relu_",
}  # fmt: skip
_RESHAPES = {"view", "_unsafe_view", "reshape", "_reshape_alias", "unflatten"}
_MOVES = {
    "permute", "transpose", "t", "expand", "squeeze", "unsqueeze", "flip", "roll", "repeat", "pixel_shuffle",
    "pixel_unshuffle", "flatten", "movedim",
}  # fmt: skip
_JOINS = {"cat", "stack"}
_CUTS = {"slice", "narrow", "select", "split", "split_with_sizes", "unbind", "chunk", "unsafe_split"}
_SPATIAL = {
    "max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "avg_pool1d", "avg_pool3d", "_adaptive_avg_pool3d", "max_pool3d_with_indices",
    "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_nearest_exact2d",
    "reflection_pad2d", "replication_pad2d",
}  # fmt: skip
_REDUCTIONS = {"mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "norm", "logsumexp", "max", "min"}
_ALONG = {"_softmax", "_log_softmax", "softmax", "log_softmax"}


class ChannelTracer(TorchDispatchMode):
    """Labels every element of every tensor with the channel it holds, and ties labels that must be cut together.

    A label is the number of a position of an axis (``number``), or FIXED. A layer ties the labels that it reads to
    its input positions and gives its output positions as labels; what moves elements moves their labels; what
    combines elements ties them. Where an operation is not known, all that it reads is tied to FIXED; ``held`` lists
    the labels that became so, by the reason in words. Labels are kept without the dimensions along which they are
    all the same.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.sizes = axis_sizes(model)
        starts = np.cumsum([1, *self.sizes.values()]).tolist()
        self.start = dict(zip(self.sizes, starts, strict=False))
        self.count = int(starts[-1])
        self.ties: list[Tensor] = []
        self.held: dict[str, list[Tensor]] = {}
        self.seen: set[Axis] = set()
        self._labels: dict[int, Tensor] = {}
        self._alive: list[Tensor] = []  # an id is unique only while its tensor lives
        self._inside = 0
        for path, parameter in bare_parameters(model):
            axis, dim = Axis(path, "param"), parameter_dim(parameter)
            if dim is not None:
                self.seen.add(axis)
                self._give(parameter, self.numbers(axis), dim)

    def numbers(self, axis: Axis) -> Tensor:
        """The labels of the positions of ``axis``."""
        return torch.arange(self.start[axis], self.start[axis] + self.sizes[axis])

    def run(self, model: nn.Module, inputs: Inputs, through: Sequence[str] = ()) -> None:
        """Trace one call of ``model``, whose outputs are FIXED; ``through``: modules that tie input to output."""
        for tensor in tensors_in(inputs):
            self._fix(tensor)
        with self._hooked(model, through), self:
            results = outputs(model, inputs)
        for tensor in results:
            self.tie(self._of(tensor), torch.tensor(FIXED))

    def run_training(self, model: nn.Module, inputs: Inputs) -> None:
        """Trace one call in training mode, on shapes alone: further layers, such as auxiliary heads, run in it."""
        shapes = like(inputs, 2, torch.empty, device="meta")
        copied = outline(model, "meta")
        renamed = {id(b): a for (_, a), (_, b) in zip(bare_parameters(model), bare_parameters(copied), strict=True)}
        for parameter in copied.parameters():
            if id(parameter) in renamed:
                self._labels[id(parameter)] = self._of(renamed[id(parameter)])
        self._alive.extend(copied.parameters())
        self.run(copied.train(), shapes)

    @contextmanager
    def _hooked(self, model: nn.Module, through: Sequence[str]) -> Iterator[None]:
        hooks = []
        for path, module in model.named_modules():
            if axes_of(module):
                hooks.append(module.register_forward_pre_hook(self._enter))
                hooks.append(module.register_forward_hook(lambda m, a, out, path=path: self._leave(path, m, a, out)))
        modules = [model.get_submodule(path) for path in through]
        hooks += [m.register_forward_hook(lambda _m, args, out: self._through(args[0], out)) for m in modules]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _through(self, x: Tensor, y: Tensor) -> None:
        with _pop_mode_temporarily():  # what is done to labels is not traced
            self.tie(self._full(x), self._full(y))

    def _enter(self, *_: Any) -> None:
        self._inside += 1

    def _leave(self, path: str, module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        """A layer is one step, whatever it does inside (pads, standardises its weights, acts)."""
        if self._inside == 1:
            with _pop_mode_temporarily():
                self._layer(path, module, args[0], tensors_in(output)[0])
        self._inside -= 1

    def _layer(self, path: str, module: nn.Module, x: Tensor, y: Tensor) -> None:
        sizes = axes_of(module)
        out = Axis(path, "out")
        self.seen.add(out)
        if "in" in sizes:
            spatial = len(module.kernel_size) if isinstance(module, _ConvNd) else 0
            into = Axis(path, "in")
            self.seen.add(into)
            self.tie(self._along(x, x.dim() - spatial - 1), self.numbers(into))
            self._give(y, self.numbers(out), y.dim() - spatial - 1)
            return
        dim = 1
        if isinstance(module, nn.LayerNorm):
            labels, size = self._of(x), sizes["out"]
            first = x.dim() == 4 and x.shape[1] == size and (x.shape[-1] != size or labels.shape[1] == size)
            dim = 1 if first else x.dim() - 1
        self.tie(self._along(x, dim), self.numbers(out))
        self._give(y, self.numbers(out), dim)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self._inside:
            read = [t for t in tensors_in([*args, *kwargs.values()]) if id(t) in self._labels]
            if read:
                self._follow(func, args, kwargs, result, read)
        return result

    def _follow(self, func: Any, args: Any, kwargs: Mapping[str, Any], result: Any, read: list[Tensor]) -> None:
        name = func._schema.name.removeprefix("aten::")
        made = tensors_in(result)
        if name in _SAME:
            self._set(made[0], self._of(read[0]))
        elif name in _RESHAPES:
            self._reshaped(args[0], made[0])
        elif name in _MOVES:
            self._set(made[0], func(self._full(args[0]), *args[1:], **kwargs))
        elif name == "constant_pad_nd":
            self._set(made[0], func(self._full(args[0]), args[1], FIXED))
        elif name in _JOINS:
            self._set(made[0], func([self._full(t) for t in args[0]], *args[1:], **kwargs))
        elif name in _CUTS:
            self._cut(name, func, args, kwargs, made)
        elif name in _SPATIAL:
            self._give(made[0], self._along(args[0], args[0].dim() - (3 if "3d" in name else 2) - 1), 1)
        elif name in _REDUCTIONS and len(made) == 1:
            self._reduced(args[0], args[1:], made[0])
        elif name in _ALONG:
            self._set(made[0], self._one_along(self._of(args[0]), [args[1]]).expand(self._of(args[0]).shape))
        elif name == "copy_":
            self._copied(*args[:2])
        elif torch.Tag.pointwise in func.tags or name in _POINTWISE:
            self._joined(tensors_in([*args, *kwargs.values()]), made)
        else:
            self._give_up(name, read, made)

    def _give_up(self, name: str, read: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        for tensor in read:
            self._hold(self._of(tensor), f"what {name} does to their channels is not known")
        for tensor in made:
            self._fix(tensor)

    def _hold(self, labels: Tensor, reason: str) -> None:
        self.tie(labels, torch.tensor(FIXED))
        self.held.setdefault(reason, []).append(labels.flatten())

    # What operations do to labels

    def _reshaped(self, x: Tensor, y: Tensor) -> None:
        """A dimension split in two is taken for groups of equal channels: all keep the same positions."""
        labels = self._full(x).reshape(y.shape)
        core = self._of(x)
        for old, new in _matching(x.shape, y.shape):
            long = [d for d in new if y.shape[d] > 1]
            if len(long) > 1 and any(core.shape[d] > 1 for d in old):
                for d in long[:-1]:
                    self.tie(labels, labels.narrow(d, 0, 1))
        self._set(y, labels)

    def _cut(self, name: str, func: Any, args: Any, kwargs: Mapping[str, Any], made: Sequence[Tensor]) -> None:
        """Slices have fixed ends: what lies before the last end stays. Equal splits are taken for groups."""
        x = args[0]
        labels = self._full(x)
        pieces = tensors_in(func(labels, *args[1:], **kwargs))
        dim = 0 if name == "unbind" else args[1] if name in ("slice", "select", "narrow") else 0
        dim = args[1] if name == "unbind" and len(args) > 1 else dim
        if "split" in name or name == "chunk":
            dim = args[2] if len(args) > 2 else kwargs.get("dim", 0)
        if len(args) == 1 and name == "slice":
            dim = 0
        dim %= x.dim()
        if self._of(x).shape[dim] > 1:
            self._keep_ends(name, labels, pieces, dim, args)
        for tensor, piece in zip(made, pieces, strict=True):
            self._set(tensor, piece)

    def _keep_ends(self, name: str, labels: Tensor, pieces: Sequence[Tensor], dim: int, args: Any) -> None:
        size, fixed = labels.shape[dim], labels
        if name in ("split", "chunk", "unsafe_split") and len({p.shape[dim] for p in pieces}) == 1:
            for piece in pieces[1:]:
                self.tie(pieces[0], piece)
            return
        if name == "slice":
            start, end, step = (args[i] if len(args) > i else default for i, default in ((2, None), (3, None), (4, 1)))
            low, high, _ = slice(start, end).indices(size)
            if step == 1:
                last = low if high == size else high
                if last == 0:
                    return
                fixed = labels.narrow(dim, 0, last)
        self._hold(fixed, "a slice of fixed size reads them")

    def _reduced(self, x: Tensor, args: Sequence[Any], y: Tensor) -> None:
        core = self._of(x)
        asked = next((a for a in args if isinstance(a, list | tuple | int) and not isinstance(a, bool)), None)
        if args and not isinstance(args[0], list | tuple | int):
            asked = args[1] if len(args) > 1 else None  # a norm's order comes first
        dims = range(x.dim()) if asked is None or asked == [] else [asked] if isinstance(asked, int) else asked
        dims = sorted(d % x.dim() for d in dims)
        core = self._one_along(core, dims)
        self._set(
            y, core if y.dim() == x.dim() else core.reshape([n for d, n in enumerate(core.shape) if d not in dims])
        )

    def _joined(self, operands: Sequence[Tensor], made: Sequence[Tensor]) -> None:
        """Element by element: operands that hold channels along the same dimensions are tied."""
        shape = torch.broadcast_shapes(*(t.shape for t in operands))
        known = [self._aligned(t, len(shape)) for t in operands if id(t) in self._labels]
        for tensor in operands:
            if id(tensor) not in self._labels and tensor.numel() > 1:  # a constant does not shrink with the channels
                sides = [1] * (len(shape) - tensor.dim()) + list(tensor.shape)
                known_here = [
                    core for _, core in known if any(a > 1 < b for a, b in zip(sides, core.shape, strict=True))
                ]
                for core in known_here:
                    self._hold(core, "they meet a constant of fixed size")
        whole = [core for sides, core in known if not _spreads(sides, shape, [c for _, c in known])]
        if not whole:
            for _, core in known:
                self.tie(core, torch.tensor(FIXED))
            whole = [torch.zeros([1] * len(shape), dtype=torch.long)]
        for core in whole[1:]:
            one, other = torch.broadcast_tensors(whole[0], core)
            half = (one == FIXED) != (other == FIXED)
            if bool(half.any()):
                self._hold(torch.maximum(one, other)[half], "they meet padding or something else of fixed size")
            self.tie(one, other)
        labels = whole[0].expand(torch.broadcast_shapes(*(core.shape for core in whole)))
        for tensor in made:
            self._set(tensor, labels)

    def _copied(self, target: Tensor, source: Tensor) -> None:
        """Written into a part of a tensor: both are cut together; into one that holds no channels: the source stays."""
        if id(source) not in self._labels:
            self.tie(self._of(target), torch.tensor(FIXED))
        elif id(target) in self._labels:
            self._joined([target, source], [])
        else:
            self.tie(self._of(source), torch.tensor(FIXED))

    # Labels of tensors

    def _aligned(self, tensor: Tensor, dims: int) -> tuple[list[int], Tensor]:
        core, more = self._of(tensor), [1] * (dims - tensor.dim())
        return [*more, *tensor.shape], core.reshape([*more, *core.shape])

    def _of(self, tensor: Tensor) -> Tensor:
        """The labels of ``tensor``, without the dimensions along which they do not change."""
        found = self._labels.get(id(tensor))
        return torch.zeros([1] * tensor.dim(), dtype=torch.long) if found is None else found

    def _full(self, tensor: Tensor) -> Tensor:
        return self._of(tensor).expand(tensor.shape)

    def _fix(self, tensor: Tensor) -> None:
        self._set(tensor, torch.zeros([1] * tensor.dim(), dtype=torch.long))

    def _give(self, tensor: Tensor, labels: Tensor, dim: int) -> None:
        self._set(tensor, labels.reshape([-1 if d == dim else 1 for d in range(tensor.dim())]))

    def _set(self, tensor: Tensor, labels: Tensor) -> None:
        for d in range(labels.dim()):
            if labels.shape[d] > 1:
                first = labels.narrow(d, 0, 1)
                if labels.stride(d) == 0 or bool((labels == first).all()):
                    labels = first
        self._labels[id(tensor)] = labels.contiguous()
        self._alive.append(tensor)

    def _along(self, tensor: Tensor, dim: int) -> Tensor:
        """One label per position of dimension ``dim``; those that share a position are tied."""
        core = self._of(tensor)
        others = [d for d in range(core.dim()) if d != dim]
        return self._one_along(core, others).flatten().expand(tensor.shape[dim])

    def _one_along(self, core: Tensor, dims: Sequence[int]) -> Tensor:
        """The labels with every one of ``dims`` shrunk to one position, to which the others are tied."""
        for d in dims:
            if core.shape[d] > 1:
                first = core.narrow(d, 0, 1)
                self.tie(core, first)
                core = first
        return core

    def tie(self, a: Tensor, b: Tensor) -> None:
        """These labels are cut together, element by element after broadcasting."""
        a, b = torch.broadcast_tensors(a, b)
        different = a != b
        if bool(different.any()):
            self.ties.append(torch.stack([a[different], b[different]]))

    def edges(self) -> NDArray[np.int64]:
        """(2, n): all pairs of labels tied."""
        return torch.cat(self.ties, 1).numpy() if self.ties else np.zeros((2, 0), dtype=np.int64)


def _spreads(sides: Sequence[int], shape: Sequence[int], cores: Sequence[Tensor]) -> bool:
    """Whether an operand of these ``sides`` is repeated along a dimension in which the others hold channels."""
    return any(
        side == 1 < size and any(core.shape[d] > 1 for core in cores)
        for d, (side, size) in enumerate(zip(sides, shape, strict=True))
    )


def _matching(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """The dimensions of two shapes in smallest runs of equal size."""
    i = j = 0
    while i < len(old) and j < len(new):
        a, b, p, q = [i], [j], old[i], new[j]
        i, j = i + 1, j + 1
        while p != q:
            if p < q:
                p, a, i = p * old[i], [*a, i], i + 1
            else:
                q, b, j = q * new[j], [*b, j], j + 1
        yield a, b
