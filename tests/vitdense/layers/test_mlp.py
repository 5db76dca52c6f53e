"""The MLPs equal their references, and the lean way through norm and MLP equals the plain one wherever it is taken."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers.mlp import GluMlp, SwiGLU
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from vitdense.layers.mlp import ACTIVATIONS, Activation, GatedMlp, Mlp, normed_mlp

Kind = Callable[[], Mlp | GatedMlp]
KINDS: dict[str, Kind] = {
    "mlp": lambda: Mlp(6, hidden=10),
    "tanh": lambda: Mlp(6, hidden=10, activation="gelu_tanh"),
    "quick": lambda: Mlp(6, hidden=10, activation="quick_gelu"),
    "gated": lambda: GatedMlp(6, hidden=5),
    "gated and normed": lambda: GatedMlp(6, hidden=5, norm_eps=1e-6),
}


class Pair(nn.Module):
    """A norm and an MLP, taken by the lean or the plain way."""

    def __init__(self, mlp: Mlp | GatedMlp, *, lean: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.mlp, self.lean = nn.LayerNorm(6, eps=1e-5), mlp, lean
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = normed_mlp(tokens, self.norm, self.mlp) if self.lean else self.mlp(self.norm(tokens))
        return out


def both(kind: str, dtype: torch.dtype = torch.float64) -> tuple[Pair, Pair]:
    return Pair(KINDS[kind]()).to(dtype), Pair(KINDS[kind](), lean=False).to(dtype)


def tokens_of(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()


def run(pair: nn.Module, tokens: Tensor) -> list[Tensor]:
    """The output and the gradients of the tokens and of every parameter that has one."""
    out = pair(tokens)
    weights = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).to(out.dtype)
    wanted = [each for each in (tokens, *pair.parameters()) if each.requires_grad]
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), wanted)]


def kept_bytes(pair: Pair, tokens: Tensor) -> int:
    """The memory that the backward pass holds, parameters and tokens aside."""
    known = {each.data_ptr() for each in (tokens, *pair.parameters())}
    found: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        if saved.data_ptr() not in known:
            found[saved.data_ptr()] = saved.untyped_storage().nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        out = pair(tokens)
    assert out.requires_grad
    return sum(found.values())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_equal_their_formulas(activation: Activation) -> None:
    x = torch.linspace(-4, 4, 9, dtype=torch.float64)
    expected = {
        "gelu": x * (1 + torch.erf(x / 2**0.5)) / 2,
        "gelu_tanh": x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))) / 2,
        "quick_gelu": x / (1 + torch.exp(-1.702 * x)),
        "silu": x / (1 + torch.exp(-x)),
    }
    torch.testing.assert_close(ACTIVATIONS[activation](x), expected[activation])


@pytest.mark.parametrize("norm_eps", [None, 1e-6])
def test_gated_mlp_equals_timms_packed_one(norm_eps: float | None) -> None:
    norm = None if norm_eps is None else nn.LayerNorm
    theirs: Any = GluMlp(6, 10, act_layer=nn.SiLU, gate_last=False, norm_layer=norm)
    if norm_eps is not None:
        theirs.norm.eps = norm_eps
    ours = GatedMlp(6, hidden=5, norm_eps=norm_eps)
    ours.load_state_dict(theirs.state_dict())
    tokens = torch.randn(2, 3, 6)
    torch.testing.assert_close(ours(tokens), theirs(tokens))


def test_gated_mlp_equals_timms_split_one() -> None:
    theirs: Any = SwiGLU(6, 5, norm_layer=nn.LayerNorm)
    ours = GatedMlp(6, hidden=5, norm_eps=1e-5)
    state = theirs.state_dict()
    packed = {
        f"fc1.{part}": torch.cat([state.pop(f"fc1_g.{part}"), state.pop(f"fc1_x.{part}")])
        for part in ("weight", "bias")
    }
    ours.load_state_dict({**state, **packed})
    tokens = torch.randn(2, 3, 6)
    torch.testing.assert_close(ours(tokens), theirs(tokens))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_lean_values_and_gradients_equal_plain_ones(kind: str, dtype: torch.dtype, bound: float) -> None:
    tokens = tokens_of(2, 2600, 6, dtype=dtype)  # more than one piece
    lean, plain = both(kind, dtype)
    for ours, theirs in zip(run(lean, tokens), run(plain, tokens), strict=True):
        assert float((ours - theirs).abs().max()) <= bound * float(theirs.abs().max())
    with torch.no_grad():
        torch.testing.assert_close(lean(tokens), plain(tokens), atol=bound, rtol=bound)


@pytest.mark.parametrize("kind", KINDS)
def test_lean_gradients_pass_gradcheck(kind: str) -> None:
    lean, _ = both(kind)
    assert gradcheck(lambda tokens, *_: lean(tokens), (tokens_of(3, 6), *lean.parameters()))


@pytest.mark.parametrize("kind", ["mlp", "gated"])
def test_little_more_is_kept_than_fc1s_output(kind: str) -> None:
    lean, plain = both(kind)
    tokens = tokens_of(200, 6)
    assert kept_bytes(lean, tokens) == 200 * 10 * 8
    assert kept_bytes(plain, tokens) > 2 * 200 * 10 * 8


def test_without_gradients_fc1s_output_never_exists_for_all_tokens() -> None:
    lean, plain = both("mlp")
    tokens, seen = tokens_of(9000, 6), []

    def activate(hidden: Tensor) -> Tensor:
        seen.append(len(hidden))
        return F.gelu(hidden)

    lean.mlp.activate = activate
    with torch.no_grad():
        torch.testing.assert_close(lean(tokens), plain(tokens))
    assert sum(seen) == 9000
    assert max(seen) < 2000


@pytest.mark.parametrize("frozen", ["norm", "fc1", "fc2", "fc1.bias", "norm fc1", "norm fc1 tokens"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    tokens = tokens_of(7, 6)
    results = []
    for pair in both("mlp"):
        for name, parameter in pair.named_parameters():
            parameter.requires_grad_(not any(part in name for part in frozen.split()))
        results.append(run(pair, tokens.detach() if "tokens" in frozen else tokens))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kind", ["mlp", "gated and normed"])
def test_autocast_gives_the_plain_types_and_errors(kind: str) -> None:
    tokens = tokens_of(2, 2600, 6, dtype=torch.float32)
    exact = run(both(kind, torch.float64)[1], tokens.detach().double().requires_grad_())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lean, plain = (run(pair, tokens) for pair in both(kind, torch.float32))
        assert kept_bytes(both("mlp", torch.float32)[0], tokens) < 5200 * 10 * 3  # halves, with the weights' copies
    for ours, theirs, true in zip(lean, plain, exact, strict=True):
        assert ours.dtype == theirs.dtype
        assert float((ours - true).norm()) <= 1.1 * float((theirs - true).norm()) + 1e-6


@pytest.mark.parametrize("kind", ["mlp", "gated"])
def test_lean_ways_can_be_run_again_in_backward_and_kept_elsewhere(kind: str) -> None:
    lean, plain = both(kind)
    tokens = tokens_of(5, 6)
    expected = run(plain, tokens)

    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = lean

        def forward(self, tokens: Tensor) -> Tensor:
            out: Tensor = checkpoint(self.pair, tokens, use_reentrant=False)
            return out

    torch.testing.assert_close(run(Again(), tokens), expected)
    with torch.autograd.graph.saved_tensors_hooks(lambda kept: kept.numpy(force=True), torch.from_numpy):
        torch.testing.assert_close(run(lean, tokens), expected)


@pytest.mark.parametrize("kind", ["mlp", "gated and normed"])
def test_second_derivatives_equal_plain_ones(kind: str) -> None:
    tokens, results = tokens_of(5, 6), []
    for pair in both(kind):
        inputs = [tokens, *pair.parameters()]
        first = torch.autograd.grad(pair(tokens).square().sum(), inputs, create_graph=True)
        penalty = torch.stack([each.square().sum() for each in first]).sum()
        results.append(torch.autograd.grad(penalty, inputs, allow_unused=True))
    torch.testing.assert_close(*results)


def test_hooks_and_replaced_parts_are_called() -> None:
    lean, plain = both("mlp")
    tokens, seen = tokens_of(5, 6), []
    for name in ("norm", "mlp", "mlp.fc1"):
        lean.get_submodule(name).register_forward_hook(lambda module, *_: seen.append(module))
    torch.testing.assert_close(run(lean, tokens), run(plain, tokens))
    assert set(seen) == {lean.norm, lean.mlp, lean.mlp.fc1}

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    for pair in both("mlp"):
        inner = Doubled(10, 6, dtype=torch.float64)
        nn.init.ones_(inner.weight)
        pair.mlp.fc2 = inner
        torch.testing.assert_close(pair(tokens), pair.mlp(pair.norm(tokens)))


def test_compiled_and_exported_the_plain_way_is_taken() -> None:
    lean, plain = both("mlp", torch.float32)
    tokens = tokens_of(3, 5, 6, dtype=torch.float32).detach()
    compiled = torch.compile(lean, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(tokens), plain(tokens))
    free = torch.export.export(lean, (tokens,), dynamic_shapes=({1: torch.export.Dim.DYNAMIC},))
    longer = torch.randn(3, 5000, 6)
    torch.testing.assert_close(free.module()(longer), plain(longer))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_traced_one_takes_other_sizes() -> None:
    lean, plain = both("mlp", torch.float32)
    traced = torch.jit.trace(lean, (torch.randn(3, 6),), check_trace=False)  # type: ignore[no-untyped-call]
    longer = torch.randn(2000, 6)
    torch.testing.assert_close(traced(longer), plain(longer))


def test_transformed_the_plain_way_is_taken() -> None:
    tokens, results = tokens_of(3, 2, 6).detach(), []
    for pair in both("mlp"):
        slope = torch.func.jvp(pair, (tokens,), (torch.ones_like(tokens),))
        forward = torch.autograd.functional.jacobian(  # type: ignore[no-untyped-call]
            pair, tokens[0], vectorize=True, strategy="forward-mode"
        )
        results.append([torch.func.vmap(pair)(tokens), *slope, forward, torch.func.jacrev(pair)(tokens[0])])
    torch.testing.assert_close(*results)
