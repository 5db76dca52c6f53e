"""Every compiled contender stays compiled, and one that can't be is absent with the reason."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vitdense.benchmarking import AbsentError
from vitdense.benchmarking.compiling import compiling, refusing_to_compile

CONTENDERS = 10


def compiled_of(count: int) -> int:
    """How many of so many networks, all called by the same code, are compiled."""
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    def call(network: nn.Module) -> Callable[[Tensor], Tensor]:
        def step(images: Tensor) -> Tensor:
            out: Tensor = network(images)
            return out

        return torch.compile(step, backend=backend)

    for width in range(2, 2 + count):
        call(nn.Linear(3, width))(torch.ones(1, 3))
    return len(graphs)


@pytest.fixture(autouse=True)
def _forgotten() -> object:
    yield
    torch.compiler.reset()


def test_all_contenders_are_compiled_where_torch_alone_gives_up() -> None:
    with compiling(wanted=True):
        assert compiled_of(CONTENDERS) == CONTENDERS
    torch.compiler.reset()
    assert compiled_of(CONTENDERS) < CONTENDERS


def test_what_cant_be_compiled_is_absent_with_the_reason() -> None:
    def breaking(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        raise ValueError("no such kernel")

    step = torch.compile(lambda images: images + 1, backend=breaking)
    with pytest.raises(AbsentError, match=r"torch.compile failed: .*no such kernel"), refusing_to_compile():
        step(torch.ones(1))
