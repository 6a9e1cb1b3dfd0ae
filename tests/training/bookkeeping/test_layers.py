"""Every supported layer: the book-keeping sum equals the sum over one autograd pass per example."""

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from privguard.training.bookkeeping import BookKeeper
from privguard.training.clip import Clipper, OneByOne

HUGE = 1e6  # a clipping norm that clips nothing


class Squares(nn.Module):
    """Some layers and a loss that every output takes part in."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        return (out.sin() + 0.3 * out.square()).flatten(1).sum(1)


LAYERS = {
    "linear": (lambda: [nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)], lambda b: torch.randn(b, 5)),
    "linear over positions": (lambda: [nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)], lambda b: torch.randn(b, 4, 5)),
    "linear in four dimensions": (lambda: [nn.Linear(5, 2)], lambda b: torch.randn(b, 2, 3, 5)),
    "Conv1D of transformers": (lambda: [Conv1D(7, 5), nn.Tanh(), Conv1D(3, 7)], lambda b: torch.randn(b, 4, 5)),
    "embedding": (lambda: [nn.Embedding(9, 4), nn.Linear(4, 2)], lambda b: torch.randint(9, (b, 6))),
    "embedding with padding": (lambda: [nn.Embedding(5, 4, padding_idx=0)], lambda b: torch.randint(5, (b, 6))),
    "layer norm": (lambda: [nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 2)], lambda b: torch.randn(b, 4, 5)),
    "layer norm over two dimensions": (lambda: [nn.LayerNorm((4, 5))], lambda b: torch.randn(b, 3, 4, 5)),
    "group norm": (lambda: [nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 3)], lambda b: torch.randn(b, 4, 6, 6)),
    "convolution": (
        lambda: [nn.Conv2d(2, 4, 3, padding=1, stride=2), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, groups=2)],
        lambda b: torch.randn(b, 2, 9, 9),
    ),
}


def clipped(clipper: Clipper, model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    for x, mask in batches:
        clipper.begin(mask)
        clipper.backward(model(x))
    total = clipper.take()
    clipper.close()
    assert all(p.grad is None for p in model.parameters())
    return total.gradients


def distance(one: dict[str, Tensor], two: dict[str, Tensor]) -> float:
    """‖one − two‖ / ‖two‖ over all parameters together."""
    assert one.keys() == two.keys()
    gap = sum(float((one[n].double() - two[n].double()).square().sum()) for n in one)
    return (gap / sum(float(t.double().square().sum()) for t in two.values())) ** 0.5


@pytest.mark.parametrize("bound", [HUGE, 0.5])
@pytest.mark.parametrize("layer", LAYERS)
def test_book_keeping_equals_one_example_at_a_time(layer: str, bound: float) -> None:
    make, draw = LAYERS[layer]
    model = Squares(*make())
    batches = [(draw(4), torch.tensor([True, True, False, True])), (draw(2), torch.ones(2, dtype=torch.bool))]
    slow = clipped(OneByOne(model, max_grad_norm=bound), model, batches)
    fast = clipped(BookKeeper(model, max_grad_norm=bound), model, batches)
    assert distance(fast, slow) < 1e-6
