# SPDX-License-Identifier: Apache-2.0
"""Many small networks as one: every parameter gets a leading axis of models, every product becomes a batched product.

The backward pass is written by hand, because a batched product is the whole cost of a small network and autograd adds
copies around it: dense layers need five products for two layers where the usual rule of six counts an input gradient
that nobody uses. Images travel channels last, so that a convolution is one product over patches.

Shapes: K models, B examples each. Inputs (K, B, ...), activations of images (K, B, H, W, C).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, cast, final

import torch
from torch import Tensor, nn

from privguard.errors import UnsupportedModelError


class Layer(Protocol):
    """One stage of a stack. ``backward`` follows ``forward`` and gives its input's gradient, None where unwanted."""

    parameters: list[Tensor]
    gradients: list[Tensor]

    def forward(self, inputs: Tensor) -> Tensor:
        """The layer's output for K models."""
        ...

    def backward(self, upstream: Tensor, *, want_input: bool) -> Tensor | None:
        """Fill ``gradients`` from the gradient of the output."""
        ...

    def to_modules(self) -> list[list[Tensor]]:
        """The parameters of each model in the layout of the ``nn`` module, K lists."""
        ...


@final
class Stack:
    """K networks of the same architecture; ``parameters`` are float32 tensors (K, ...) that an optimiser updates."""

    def __init__(self, layers: Sequence[Layer], *, precision: torch.dtype = torch.float32) -> None:
        self.layers = list(layers)
        self.precision = precision
        self.parameters = [parameter for layer in self.layers for parameter in layer.parameters]

    def logits(self, inputs: Tensor) -> Tensor:
        """Outputs (K, B, classes) in float32 of inputs (K, B, ...)."""
        return self._forward(inputs).to(torch.float32, copy=True)  # the layers' own memory is written again next time

    def _forward(self, inputs: Tensor) -> Tensor:
        flow = inputs if inputs.dtype == self.precision else inputs.to(self.precision)
        if flow.dim() == 5:  # noqa: PLR2004 — (K, B, C, H, W)
            flow = flow.permute(0, 1, 3, 4, 2)
        for layer in self.layers:
            flow = layer.forward(flow)
        return flow

    def gradients(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> list[Tensor]:
        """Gradients (K, ...) of Σ_b weights[k, b] · cross-entropy(inputs[k, b], labels[k, b]), one per parameter."""
        flow = torch.softmax(self._forward(inputs).float(), dim=2)
        flow.scatter_add_(2, labels.unsqueeze(2), flow.new_full((), -1.0).expand(*labels.shape, 1))
        flow.mul_(weights.unsqueeze(2))
        upstream: Tensor | None = flow.to(self.precision)
        for number in range(len(self.layers) - 1, -1, -1):
            wanted = any(layer.parameters for layer in self.layers[:number])
            upstream = self.layers[number].backward(upstream, want_input=wanted)
            if upstream is None:
                break
        return [gradient for layer in self.layers for gradient in layer.gradients]

    def state(self, model: int, names: Iterable[str]) -> dict[str, Tensor]:
        """The parameters of one model under the names that ``nn.Module.named_parameters`` gives them."""
        values = [value for layer in self.layers for value in layer.to_modules()[model]]
        return dict(zip(names, values, strict=True))


def stack_modules(modules: Sequence[nn.Module], *, precision: torch.dtype = torch.float32) -> Stack:
    """Stack networks of equal architecture: ``nn.Sequential`` of Linear, Conv2d, MaxPool2d, ReLU, Tanh and Flatten.

    Raises:
        UnsupportedModelError: for any other module, whose references ``privguard.audit.references.reference``
            trains through ``torch.func``.
    """
    columns = [list(_flat(module)) for module in modules]
    return Stack([_layer(list(column), precision) for column in zip(*columns, strict=True)], precision=precision)


def stackable(module: nn.Module) -> bool:
    """Whether ``stack_modules`` takes this architecture."""
    try:
        stack_modules([module])
    except UnsupportedModelError:
        return False
    return True


def _flat(module: nn.Module) -> Iterable[nn.Module]:
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _flat(child)
    else:
        yield module


def _layer(column: list[nn.Module], precision: torch.dtype) -> Layer:
    for kind, make in _MAKERS.items():
        if type(column[0]) is kind:
            return make(column, precision)
    raise UnsupportedModelError(
        f"{type(column[0]).__name__}: expected {', '.join(kind.__name__ for kind in _MAKERS)} in an nn.Sequential"
    )


class _Plain:
    """A layer without parameters."""

    def __init__(self) -> None:
        self.parameters: list[Tensor] = []
        self.gradients: list[Tensor] = []
        self._models = 0

    def to_modules(self) -> list[list[Tensor]]:
        return [[] for _ in range(self._models)]


@final
class _Relu(_Plain):
    def __init__(self, column: Sequence[nn.Module], precision: torch.dtype) -> None:  # noqa: ARG002 — one signature
        super().__init__()
        self._models = len(column)
        self._outputs = torch.empty(0)

    def forward(self, inputs: Tensor) -> Tensor:
        self._outputs = inputs.relu_()
        return self._outputs

    def backward(self, upstream: Tensor, *, want_input: bool) -> Tensor | None:  # noqa: ARG002 — costs nothing
        return torch.ops.aten.threshold_backward.grad_input(upstream, self._outputs, 0, grad_input=upstream)


@final
class _Tanh(_Plain):
    def __init__(self, column: Sequence[nn.Module], precision: torch.dtype) -> None:  # noqa: ARG002 — one signature
        super().__init__()
        self._models = len(column)
        self._outputs = torch.empty(0)

    def forward(self, inputs: Tensor) -> Tensor:
        self._outputs = inputs.tanh_()
        return self._outputs

    def backward(self, upstream: Tensor, *, want_input: bool) -> Tensor | None:  # noqa: ARG002 — costs nothing
        return torch.ops.aten.tanh_backward(upstream, self._outputs)


@final
class _Flatten(_Plain):
    def __init__(self, column: Sequence[nn.Module], precision: torch.dtype) -> None:  # noqa: ARG002 — one signature
        super().__init__()
        self._models = len(column)
        self._shape: tuple[int, ...] = ()

    def forward(self, inputs: Tensor) -> Tensor:
        self._shape = tuple(inputs.shape)
        if inputs.dim() == 5:  # noqa: PLR2004 — an image: back to channels first, the order of nn.Flatten
            inputs = inputs.permute(0, 1, 4, 2, 3)
        return inputs.flatten(2)

    def backward(self, upstream: Tensor, *, want_input: bool) -> Tensor | None:
        if not want_input:
            return None
        if len(self._shape) != 5:  # noqa: PLR2004 — no image
            return upstream.view(self._shape)
        models, batch, height, width, channels = self._shape
        return upstream.view(models, batch, channels, height, width).permute(0, 1, 3, 4, 2)


@final
class _MaxPool(_Plain):
    """Non-overlapping maxima; a tie shares its gradient, which is a subgradient as good as the first one's."""

    def __init__(self, column: Sequence[nn.Module], precision: torch.dtype) -> None:  # noqa: ARG002 — one signature
        super().__init__()
        self._models = len(column)
        pool = cast("nn.MaxPool2d", column[0])
        plain = pool.kernel_size == pool.stride and not pool.padding and pool.dilation == 1 and not pool.ceil_mode
        if not (plain and isinstance(pool.kernel_size, int)):
            raise UnsupportedModelError(f"{pool}: expected MaxPool2d(n), square and without overlap")
        self._side = pool.kernel_size
        self._windows = self._largest = torch.empty(0)
        self._shape = torch.Size()

    def forward(self, inputs: Tensor) -> Tensor:
        side, self._shape = self._side, inputs.shape
        models, batch, height, width, channels = inputs.shape
        rows, columns = height // side, width // side
        inner = inputs[:, :, : rows * side, : columns * side]
        self._windows = inner.reshape(models, batch, rows, side, columns, side, channels)
        self._largest = self._windows.amax((3, 5), keepdim=True)
        return self._largest.view(models, batch, rows, columns, channels)

    def backward(self, upstream: Tensor, *, want_input: bool) -> Tensor | None:
        if not want_input:
            return None
        chosen = (self._windows == self._largest).to(upstream.dtype)
        share = upstream.reshape(self._largest.shape) / chosen.sum((3, 5), keepdim=True)
        inner = (chosen * share).flatten(4, 5).flatten(2, 3)
        whole = upstream.new_zeros(self._shape)
        whole[:, :, : inner.shape[2], : inner.shape[3]] = inner
        return whole


class _Product:
    """Weights (K, in, out) and biases (K, 1, out) around one batched product.

    Outputs are written into the same memory at every step: fresh memory costs a page fault for every 4 KiB of it, a
    twentieth of the whole training.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, precision: torch.dtype) -> None:
        self.weight = weight.contiguous()
        self.bias = bias
        self.parameters = [self.weight] if bias is None else [self.weight, bias]
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._precision = precision
        self._rows = self._working = torch.empty(0)
        self._products = self._pulled = torch.empty(0, dtype=precision)

    def multiply(self, rows: Tensor) -> Tensor:
        """(K, R, in) → (K, R, out)."""
        self._rows, self._working = rows, self.weight.to(self._precision)
        self._products = _fitting(self._products, rows, self._working.shape[2])
        if self.bias is None:
            return torch.bmm(rows, self._working, out=self._products)
        return torch.baddbmm(self.bias.to(self._precision), rows, self._working, out=self._products)

    def collect(self, upstream: Tensor) -> None:
        """Gradients of weight and bias from (K, R, out)."""
        if self._precision is torch.float32:
            torch.bmm(self._rows.transpose(1, 2), upstream, out=self.gradients[0])
        else:
            self.gradients[0].copy_(torch.bmm(self._rows.transpose(1, 2), upstream))
        if self.bias is not None:
            torch.sum(upstream, dim=1, keepdim=True, dtype=torch.float32, out=self.gradients[1])

    def pull(self, upstream: Tensor) -> Tensor:
        """Gradient of the rows (K, R, in)."""
        self._pulled = _fitting(self._pulled, upstream, self._working.shape[1])
        return torch.bmm(upstream, self._working.transpose(1, 2), out=self._pulled)


@final
class _Dense(_Product):
    def __init__(self, column: Sequence[nn.Module], precision: torch.dtype) -> None:
        linear = [cast("nn.Linear", module) for module in column]
        weight = torch.stack([module.weight.detach().T for module in linear])
        super().__init__(weight, _biases(linear), precision)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.multiply(inputs)

    def backward(self, upstream: Tensor, *, want_input: bool) -> Tensor | None:
        self.collect(upstream)
        return self.pull(upstream) if want_input else None

    def to_modules(self) -> list[list[Tensor]]:
        return _per_model(self, self.weight.transpose(1, 2))


@final
class _Convolution(_Product):
    """A convolution as one product over patches (K, B·h·w, kh·kw·C)."""

    def __init__(self, column: Sequence[nn.Module], precision: torch.dtype) -> None:
        convolutions = [cast("nn.Conv2d", module) for module in column]
        first = convolutions[0]
        simple = first.groups == 1 and set(first.dilation) == {1} and first.padding_mode == "zeros"
        if not simple or isinstance(first.padding, str):
            raise UnsupportedModelError(
                f"{first}: expected a Conv2d with one group, no dilation and numbers as padding"
            )
        weight = torch.stack([module.weight.detach().permute(2, 3, 1, 0).flatten(0, 2) for module in convolutions])
        super().__init__(weight, _biases(convolutions), precision)
        self._kernel, self._stride, self._padding = (
            first.kernel_size,
            first.stride,
            cast("tuple[int, int]", first.padding),
        )
        self._padded = self._output = torch.Size()

    def forward(self, inputs: Tensor) -> Tensor:
        models, batch, _, _, channels = inputs.shape
        high, wide = self._padding
        padded = nn.functional.pad(inputs, (0, 0, wide, wide, high, high)) if high or wide else inputs
        patches = padded.unfold(2, self._kernel[0], self._stride[0]).unfold(3, self._kernel[1], self._stride[1])
        rows, columns = patches.shape[2:4]  # patches: (K, B, h, w, C, kh, kw)
        flat = patches.permute(0, 1, 2, 3, 5, 6, 4).reshape(models, batch * rows * columns, -1)
        self._padded, self._output = padded.shape, torch.Size((models, batch, rows, columns, channels))
        return self.multiply(flat).view(models, batch, rows, columns, -1)

    def backward(self, upstream: Tensor, *, want_input: bool) -> Tensor | None:
        flat = upstream.reshape(upstream.shape[0], -1, upstream.shape[-1])
        self.collect(flat)
        if not want_input:
            return None
        models, batch, rows, columns, channels = self._output
        patches = self.pull(flat).view(models, batch, rows, columns, *self._kernel, channels)
        whole = upstream.new_zeros(self._padded)
        for y in range(self._kernel[0]):
            for x in range(self._kernel[1]):
                down = slice(y, y + self._stride[0] * rows, self._stride[0])
                across = slice(x, x + self._stride[1] * columns, self._stride[1])
                whole[:, :, down, across] += patches[:, :, :, :, y, x]
        high, wide = self._padding
        return whole[:, :, high : whole.shape[2] - high, wide : whole.shape[3] - wide]

    def to_modules(self) -> list[list[Tensor]]:
        models, _, out = self.weight.shape
        return _per_model(self, self.weight.view(models, *self._kernel, -1, out).permute(0, 4, 3, 1, 2))


def _fitting(memory: Tensor, rows: Tensor, width: int) -> Tensor:
    """``memory`` if it is (K, R, width) for rows (K, R, ...), else new memory that is."""
    shape = torch.Size((*rows.shape[:2], width))
    return memory if memory.shape == shape else rows.new_empty(shape)


def _biases(modules: Sequence[Any]) -> Tensor | None:
    return None if modules[0].bias is None else torch.stack([module.bias.detach()[None] for module in modules])


def _per_model(product: _Product, weights: Tensor) -> list[list[Tensor]]:
    return [
        [weights[k].contiguous()] + ([] if product.bias is None else [product.bias[k, 0].clone()])
        for k in range(len(weights))
    ]


_MAKERS: dict[type[nn.Module], Callable[[list[nn.Module], torch.dtype], Any]] = {
    nn.Linear: _Dense,
    nn.Conv2d: _Convolution,
    nn.MaxPool2d: _MaxPool,
    nn.ReLU: _Relu,
    nn.Tanh: _Tanh,
    nn.Flatten: _Flatten,
}
