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
from torch.utils._python_dispatch import TorchDispatchMode

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
    quickly,
)
from mobileprune.tensors import tensors_in

Labels = NDArray[np.int64]
FIXED = 0  # the label of what cannot be cut: the network's input, constants, what an unknown operation gives

_FIXED = np.array(FIXED)
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
    all the same, as arrays: working on tensors would be traced, too.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.sizes = axis_sizes(model)
        starts = np.cumsum([1, *self.sizes.values()]).tolist()
        self.start = dict(zip(self.sizes, starts, strict=False))
        self.count = int(starts[-1])
        self._numbers = np.arange(self.count)
        self.ties: list[Labels] = []
        self.held: dict[str, list[Labels]] = {}
        self.seen: set[Axis] = set()
        self._labels: dict[int, Labels] = {}
        self._alive: list[Tensor] = []  # an id is unique only while its tensor lives
        self._inside = 0
        for path, parameter in bare_parameters(model):
            axis, dim = Axis(path, "param"), parameter_dim(parameter)
            if dim is not None:
                self.seen.add(axis)
                self._give(parameter, self.numbers(axis), dim)

    def numbers(self, axis: Axis) -> Labels:
        """The labels of the positions of ``axis``: not to be written into."""
        return self._numbers[self.start[axis] : self.start[axis] + self.sizes[axis]]

    def run(self, model: nn.Module, inputs: Inputs, through: Sequence[str] = ()) -> None:
        """Trace one call of ``model``, whose outputs are FIXED; ``through``: modules that tie input to output."""
        for tensor in tensors_in(inputs):
            self._fix(tensor)
        with self._hooked(model, through), self:
            results = outputs(model, inputs)
        for tensor in results:
            self.tie(self._of(tensor), _FIXED)

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
        self.tie(self._full(x), self._full(y))

    def _enter(self, *_: Any) -> None:
        self._inside += 1

    def _leave(self, path: str, module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        """A layer is one step, whatever it does inside (pads, standardises its weights, acts)."""
        if self._inside == 1:
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
        result = quickly(func, args, kwargs)
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
            self._set(made[0], func(self._as_tensor(args[0]), *args[1:], **kwargs).numpy())
        elif name == "constant_pad_nd":
            self._set(made[0], func(self._as_tensor(args[0]), args[1], FIXED).numpy())
        elif name in _JOINS:
            self._set(made[0], func([self._as_tensor(t) for t in args[0]], *args[1:], **kwargs).numpy())
        elif name in _CUTS:
            self._cut(name, func, args, kwargs, made)
        elif name in _SPATIAL:
            labels = self._along(args[0], args[0].dim() - (3 if "3d" in name else 2) - 1)
            self._set(made[0], _upright(labels, 1, made[0].dim()))
        elif name in _REDUCTIONS and len(made) == 1:
            self._reduced(args[0], args[1:], made[0])
        elif name in _ALONG:
            self._set(made[0], np.broadcast_to(self._one_along(core := self._of(args[0]), [args[1]]), core.shape))
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

    def _hold(self, labels: Labels, reason: str) -> None:
        self.tie(labels, _FIXED)
        self.held.setdefault(reason, []).append(labels.flatten())

    # What operations do to labels

    def _reshaped(self, x: Tensor, y: Tensor) -> None:
        """A dimension split in two is taken for groups of equal channels: all keep the same positions."""
        labels = self._full(x).reshape(tuple(y.shape))
        core = self._of(x)
        for old, new in _matching(x.shape, y.shape):
            long = [d for d in new if y.shape[d] > 1]
            if len(long) > 1 and any(core.shape[d] > 1 for d in old):
                for d in long[:-1]:
                    self.tie(labels, _narrow(labels, d, 1))
        self._set(y, labels)

    def _cut(self, name: str, func: Any, args: Any, kwargs: Mapping[str, Any], made: Sequence[Tensor]) -> None:
        """Slices have fixed ends: what lies before the last end stays. Equal splits are taken for groups."""
        x = args[0]
        labels = self._full(x)
        pieces = [piece.numpy() for piece in tensors_in(func(self._as_tensor(x), *args[1:], **kwargs))]
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

    def _keep_ends(self, name: str, labels: Labels, pieces: Sequence[Labels], dim: int, args: Any) -> None:
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
                fixed = _narrow(labels, dim, last)
        self._hold(fixed, "a slice of fixed size reads them")

    def _reduced(self, x: Tensor, args: Sequence[Any], y: Tensor) -> None:
        core = self._of(x)
        asked = next((a for a in args if isinstance(a, list | tuple | int) and not isinstance(a, bool)), None)
        if args and not isinstance(args[0], list | tuple | int):
            asked = args[1] if len(args) > 1 else None  # a norm's order comes first
        dims = range(x.dim()) if asked is None or asked == [] else [asked] if isinstance(asked, int) else asked
        dims = sorted(d % x.dim() for d in dims)
        core = self._one_along(core, dims)
        left = [n for d, n in enumerate(core.shape) if d not in dims]
        self._set(y, core if y.dim() == x.dim() else core.reshape(left))

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
                self.tie(core, _FIXED)
            whole = [_fixed(len(shape))]
        for core in whole[1:]:
            one, other = np.broadcast_arrays(whole[0], core)
            half = (one == FIXED) != (other == FIXED)
            if half.any():
                self._hold(np.maximum(one, other)[half], "they meet padding or something else of fixed size")
            self.tie(one, other)
        labels = np.broadcast_to(whole[0], np.broadcast_shapes(*(core.shape for core in whole)))
        for tensor in made:
            self._set(tensor, labels)

    def _copied(self, target: Tensor, source: Tensor) -> None:
        """Written into a part of a tensor: both are cut together; into one that holds no channels: the source stays."""
        if id(source) not in self._labels:
            self.tie(self._of(target), _FIXED)
        elif id(target) in self._labels:
            self._joined([target, source], [])
        else:
            self.tie(self._of(source), _FIXED)

    # Labels of tensors

    def _aligned(self, tensor: Tensor, dims: int) -> tuple[list[int], Labels]:
        core, more = self._of(tensor), [1] * (dims - tensor.dim())
        return [*more, *tensor.shape], core.reshape([*more, *core.shape])

    def _of(self, tensor: Tensor) -> Labels:
        """The labels of ``tensor``, without the dimensions along which they do not change."""
        found = self._labels.get(id(tensor))
        return _fixed(tensor.dim()) if found is None else found

    def _full(self, tensor: Tensor) -> Labels:
        return np.broadcast_to(self._of(tensor), tuple(tensor.shape))

    def _as_tensor(self, tensor: Tensor) -> Tensor:
        return torch.from_numpy(self._of(tensor).copy()).expand(tensor.shape)

    def _fix(self, tensor: Tensor) -> None:
        self._keep(tensor, _fixed(tensor.dim()))

    def _give(self, tensor: Tensor, labels: Labels, dim: int) -> None:
        """One label, no two the same, per position of dimension ``dim``."""
        self._keep(tensor, _upright(labels, dim, tensor.dim()))

    def _set(self, tensor: Tensor, labels: Labels) -> None:
        for d in range(labels.ndim):
            if labels.shape[d] > 1:
                first = _narrow(labels, d, 1)
                if labels.strides[d] == 0 or (labels == first).all():
                    labels = first
        self._keep(tensor, np.ascontiguousarray(labels).reshape(labels.shape))

    def _keep(self, tensor: Tensor, labels: Labels) -> None:
        self._labels[id(tensor)] = labels
        self._alive.append(tensor)

    def _along(self, tensor: Tensor, dim: int) -> Labels:
        """One label per position of dimension ``dim``; those that share a position are tied."""
        core = self._of(tensor)
        others = [d for d in range(core.ndim) if d != dim]
        return np.broadcast_to(self._one_along(core, others).ravel(), tensor.shape[dim])

    def _one_along(self, core: Labels, dims: Sequence[int]) -> Labels:
        """The labels with every one of ``dims`` shrunk to one position, to which the others are tied."""
        for d in dims:
            if core.shape[d] > 1:
                first = _narrow(core, d, 1)
                self.tie(core, first)
                core = first
        return core

    def tie(self, one: Labels, other: Labels) -> None:
        """These labels are cut together, element by element after broadcasting."""
        if one.shape != other.shape:
            one, other = np.broadcast_arrays(one, other)
        different = one != other
        if different.any():
            self.ties.append(np.stack([one[different], other[different]]))

    def edges(self) -> Labels:
        """(2, n): all pairs of labels tied."""
        return np.concatenate(self.ties, axis=1) if self.ties else np.zeros((2, 0), dtype=np.int64)


def _fixed(dims: int) -> Labels:
    return np.full([1] * dims, FIXED)


def _upright(labels: Labels, dim: int, dims: int) -> Labels:
    """(n,) labels as an array of ``dims`` dimensions that holds them along ``dim``."""
    return labels.reshape([-1 if d == dim else 1 for d in range(dims)])


def _narrow(labels: Labels, dim: int, end: int) -> Labels:
    """The labels before ``end`` in dimension ``dim``."""
    return labels[(slice(None),) * dim + (slice(end),)]


def _spreads(sides: Sequence[int], shape: Sequence[int], cores: Sequence[Labels]) -> bool:
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
