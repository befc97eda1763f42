"""What is computed in another way on a processor is what PyTorch's own operators compute: values and gradients, as exactly."""

from __future__ import annotations

import copy
import sys

import pytest
import small
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from msdetr import recipes
from msdetr.errors import InputError
from msdetr.methods import build_criterion, build_detector
from msdetr.model.backbone import BACKBONES, Backbone
from msdetr.model.frozen import Affine, FrozenBottleneck, folds, frozen_norms
from msdetr.modules import FFN, MLP, MultiScaleDeformableAttention, SelfAttention
from msdetr.modules.conv import Conv2d
from msdetr.modules.ffn import PIECE
from msdetr.ops import backend, cpu, linear, sampling_points, takes, takes_points
from msdetr.ops.linear import multiplies_bf16
from msdetr.structures import ImageBatch, Targets

SHAPES = ((6, 5), (3, 4))
QUERIES = torch.zeros(1, 1)
fast = pytest.mark.skipif(not takes(QUERIES), reason="this processor has no faster linear layer than PyTorch's own")
in_bf16 = pytest.mark.skipif(not multiplies_bf16(), reason="this processor has no products in bf16")
either = pytest.mark.parametrize("half", [False, pytest.param(True, marks=in_bf16)])  # in fp32, and under autocast
with_points = pytest.mark.skipif(not takes_points(QUERIES, QUERIES), reason="no library, or one of earlier sources")


@pytest.fixture(autouse=True)
def products_of_onednn(monkeypatch):
    """Also on processors where MKL's are taken."""
    monkeypatch.setattr(sys.modules["msdetr.ops.linear"], "slow_mkl", lambda: True)


class Operators(TorchDispatchMode):
    """Notes which of PyTorch's operators run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def results(module, inputs, dtype, choice, half=False):
    """Output and gradients of a module's copy and its inputs, in fp64, and the operators of the forward pass. half: under bf16
    autocast."""
    module = copy.deepcopy(module).to(dtype)
    inputs = [x.detach().to(dtype, copy=True).requires_grad_() for x in inputs]
    with backend(choice):
        with torch.autocast("cpu", torch.bfloat16, enabled=half), Operators() as ran:
            output = module(*inputs)
        (output * torch.linspace(-1, 1, output.numel(), dtype=dtype).view_as(output)).sum().backward()
    leaves = [x for x in (*inputs, *module.parameters()) if x.requires_grad]
    return [output.detach().double(), *(x.grad.double() for x in leaves)], ran.names


def assert_as_exact(module, *inputs, half=False):
    """Against fp64, the fast path errs no more than twice as much as PyTorch's own operators in fp32 (half: under bf16
    autocast), or a few roundings."""
    exact, _ = results(module, inputs, torch.float64, "plain")
    (own, usual), (ours, taken) = (results(module, inputs, torch.float32, choice, half) for choice in ("plain", "auto"))
    assert taken != usual or half or len(exact) < 2, "nothing else was computed"
    for number, (true, plain, found) in enumerate(zip(exact, own, ours, strict=True)):
        size = torch.linalg.vector_norm if half else (lambda x: x.abs().max())  # single numbers of bf16 are too coarse
        rounding = 4 * torch.finfo(torch.bfloat16 if half else torch.float32).eps * size(true)
        assert size(found - true) <= 2 * size(plain - true) + rounding, f"result {number}"


class Layer(torch.nn.Module):
    def __init__(self, bias: bool, relu: bool):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(7, 19))
        self.bias = torch.nn.Parameter(torch.randn(7)) if bias else None
        self.relu = relu

    def forward(self, x):
        return linear(x, self.weight, self.bias, self.relu)


@fast
@either
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("arrange", [lambda x: x, lambda x: x.transpose(0, 1), lambda x: x[:, ::2], lambda x: x[0]])
def test_linear(bias, relu, arrange, half):
    assert_as_exact(Layer(bias, relu), arrange(torch.randn(6, 33, 19)).requires_grad_(), half=half)


def test_where_mkl_is_fast_its_products_are_taken(monkeypatch):
    monkeypatch.setattr(sys.modules["msdetr.ops.linear"], "slow_mkl", lambda: False)
    x, weight, bias = torch.randn(301, 70), torch.randn(50, 70), torch.randn(50)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert torch.equal(linear(x, weight, bias, relu=True), F.linear(x, weight, bias).relu())


@fast
def test_linear_is_differentiated_twice():
    x, weight, bias = (torch.randn(*size, requires_grad=True) for size in ((4, 5), (3, 5), (3,)))

    def second(function):
        [gradient] = torch.autograd.grad(function().pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.pow(2).sum(), (x, weight, bias))

    for ours, own in zip(second(lambda: linear(x, weight, bias)), second(lambda: F.linear(x, weight, bias))):
        torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-4)


@fast
def test_a_tensor_with_gaps_is_differentiated_twice():
    x, weight = torch.randn(4, 3, requires_grad=True), torch.randn(5, 4, requires_grad=True)

    def second(product):
        gradient = torch.autograd.grad(product(x.t(), weight).square().sum(), weight, create_graph=True)[0]
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    torch.testing.assert_close(second(linear), second(F.linear))


@fast
def test_a_tensor_of_another_width_is_named_with_its_shape():
    with pytest.raises(RuntimeError, match="2x3 and 5x4"):
        linear(torch.randn(2, 3), torch.randn(4, 5))


def test_whatever_is_not_fp32_on_a_processor_is_pytorchs_own():
    x, weight = torch.randn(4, 5), torch.randn(3, 5)
    for dtype in (torch.float64, torch.bfloat16):
        assert torch.equal(linear(x.to(dtype), weight.to(dtype)), F.linear(x.to(dtype), weight.to(dtype)))
    assert linear(x[:0], weight).shape == (0, 3) and linear(x[0], weight).shape == (3,)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    vectorized = torch.func.vmap(torch.func.grad(lambda row: linear(row, weight).sum()))(x)
    torch.testing.assert_close(vectorized, weight.sum(0).expand(4, -1))
    assert linear(x.to("meta"), weight.to("meta")).shape == (4, 3)


@fast
@either
@pytest.mark.parametrize("stride", [1, 2])
def test_pointwise_convolution(stride, half):
    assert_as_exact(Conv2d(6, 10, 1, stride), torch.randn(2, 6, 7, 9, requires_grad=True), half=half)


@with_points
@pytest.mark.parametrize("isa", range(len(cpu.INSTRUCTION_SETS)))
@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize(("heads", "points"), [(2, 4), (4, 1), (1, 3)])
def test_deformable_attention_on_every_instruction_set(width, heads, points, isa):
    attention = MultiScaleDeformableAttention(8, heads, len(SHAPES), points)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    queries, references = torch.randn(2, 301, 8, requires_grad=True), torch.rand(2, 301, 2, width)
    cpu.load().msdetr_set_instruction_set(isa)
    try:
        own, ours = (
            values_and_gradients(attention, points, queries, references)
            for points in (attention.points, attention._points_at_once)
        )
    finally:
        cpu.load().msdetr_set_instruction_set(-1)
    for a, b in zip(own, ours, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5 * a.abs().max().item())


def values_and_gradients(attention, points, queries, references):
    values = points(queries, references, SHAPES)
    draw = torch.Generator().manual_seed(1)
    loss = sum((x * torch.randn(x.shape, generator=draw)).sum() for x in values)
    both = attention.sampling_offsets, attention.attention_weights
    return [*values, *torch.autograd.grad(loss, [queries, *(p for x in both for p in (x.weight, x.bias))])]


@with_points
@pytest.mark.parametrize("width", [2, 4])
def test_points_are_differentiated_twice_and_for_many_at_once(width):
    attention = MultiScaleDeformableAttention(8, 2, len(SHAPES), 4)
    torch.nn.init.normal_(attention.attention_weights.weight)
    torch.nn.init.normal_(attention.sampling_offsets.weight)
    queries, references = torch.randn(1, 3, 8, requires_grad=True), torch.rand(1, 3, 2, width)
    found = []
    for points in (attention.points, attention._points_at_once):
        locations, weights = points(queries, references, SHAPES)
        total = locations.pow(2).sum() + weights.pow(3).sum()
        [gradient] = torch.autograd.grad(total, queries, create_graph=True)
        [second] = torch.autograd.grad(gradient.pow(2).sum(), queries, retain_graph=True)
        rows = torch.eye(3, 8)[:, None, None].expand(-1, *weights.shape[:2], -1).reshape(3, *gradient.shape)
        [many] = torch.autograd.grad(gradient, queries, rows, is_grads_batched=True)
        [at_once] = torch.autograd.grad(
            points(queries, references, SHAPES)[1],
            queries,
            torch.eye(3, weights.numel()).view(3, *weights.shape),
            is_grads_batched=True,
        )
        found.append((gradient, second, many, at_once))
    for own, ours in zip(*found):
        torch.testing.assert_close(ours, own, rtol=1e-4, atol=1e-5)


@with_points
@with_points
def test_points_of_other_shapes_are_what_pytorch_makes_of_them():
    """Too many levels or queries are an error, and what can be broadcast is."""
    module = MultiScaleDeformableAttention(32, 4, 2, 2)
    queries, tokens, shapes = torch.randn(2, 6, 32), torch.randn(2, 42, 32), SHAPES
    with torch.no_grad():
        for references in (torch.rand(1, 6, 2, 2), torch.rand(2, 6, 1, 4), torch.rand(2, 6, 2, 4)):
            expected = module(queries, references.expand(2, 6, 2, -1), tokens, shapes)
            torch.testing.assert_close(module(queries, references, tokens, shapes), expected)
        for references in (torch.rand(2, 6, 4, 2), torch.rand(2, 12, 2, 2), torch.rand(4, 6, 2, 2)):
            with pytest.raises((RuntimeError, InputError)):
                module(queries, references, tokens, shapes)
    projected, base = torch.randn(2, 6, 3 * 4 * 2 * 2), torch.rand(2, 6, 2, 2)
    for changes in ({"projected": projected[:1]}, {"base": base[:, :, :1]}, {"scale": base[:, :1]}):
        given = {"projected": projected, "base": base, "scale": base[0, 0]} | changes
        with pytest.raises(InputError, match="sampling points: projected"):
            sampling_points(**given, num_heads=4, num_points=2)


def test_references_that_learn_and_numbers_that_are_none():
    """A reference that wants a gradient gets it; logits that are infinite or NaN become what softmax makes of them."""
    attention = MultiScaleDeformableAttention(8, 2, len(SHAPES), 4)
    queries, references = torch.randn(1, 3, 8), torch.rand(1, 3, 2, 2, requires_grad=True)
    attention(queries, references, torch.randn(1, 42, 8), SHAPES).sum().backward()
    assert references.grad is not None and references.grad.abs().sum() > 0
    for value in (float("nan"), float("inf"), -float("inf"), 1e30, -1e30):
        with torch.no_grad():
            attention.attention_weights.bias[:3] = value
            for number in (1, 2):  # the first head's points: three of eight, then all of them
                own, ours = (
                    points(queries, references, SHAPES)[1] for points in (attention.points, attention._points_at_once)
                )
                torch.testing.assert_close(ours, own, equal_nan=True)
                attention.attention_weights.bias[:8] = value


def test_self_attention_is_that_of_pytorch():
    attention = SelfAttention(12, 3).double()
    query, key, value = (torch.randn(2, n, 12).double() for n in (5, 7, 7))
    mask = torch.rand(5, 7) < 0.3
    mask[:, 0] = False
    for k, v, m in ((query, value[:, :5], None), (key, value, None), (key, value, mask)):
        own = attention.attention(query, k, v, attn_mask=m, need_weights=False)[0]
        torch.testing.assert_close(attention._of_heads(query, k, v, m), own)


class Sampling(torch.nn.Module):
    """Deformable attention of queries at fixed references into fixed tokens."""

    def __init__(self, width: int):
        super().__init__()
        self.attention = MultiScaleDeformableAttention(8, 2, len(SHAPES), 4)
        self.references, self.tokens = torch.rand(2, 21, 2, width), torch.randn(2, 42, 8)
        torch.nn.init.normal_(self.attention.attention_weights.weight)

    def forward(self, queries):
        return self.attention(queries, *(x.to(queries.dtype) for x in (self.references, self.tokens)), SHAPES)


class Attending(torch.nn.Module):
    """Self-attention of all queries to each other."""

    def __init__(self):
        super().__init__()
        self.inner = SelfAttention(12, 3)

    def forward(self, queries):
        return self.inner._of_heads(queries, queries, queries, None)


@with_points
@in_bf16
@pytest.mark.parametrize("width", [2, 4])
def test_deformable_attention_in_bf16(width):
    assert_as_exact(Sampling(width), torch.randn(2, 21, 8, requires_grad=True), half=True)


@with_points
@pytest.mark.parametrize("width", [2, 4])
def test_references_in_bf16(width, monkeypatch):
    """Under autocast on a processor with products in bf16 they are taken; these few numbers have no rounding in either."""
    monkeypatch.setattr(sys.modules["msdetr.ops.linear"], "multiplies_bf16", lambda: True)
    projected = torch.zeros(1, 2, 3)
    base = torch.tensor([[[[0.25, 0.5]], [[0.75, 0.125]]]]).bfloat16()
    scale = torch.ones(1, 2) if width == 2 else base
    with torch.autocast("cpu", torch.bfloat16):
        assert takes_points(projected, base)
        locations, weights = sampling_points(projected, base, scale.bfloat16(), 1, 1)
    assert locations.dtype == torch.float32 and torch.equal(locations.view(1, 2, 1, 2), base.float())
    assert (weights == 1).all()


@fast
@either
def test_self_attention(half):
    assert_as_exact(Attending(), torch.randn(2, 17, 12, requires_grad=True), half=half)


@fast
@either
def test_perceptron(half):
    assert_as_exact(MLP(9, 16, 16, 4), torch.randn(3, 21, 9, requires_grad=True), half=half)


@fast
@either
def test_frozen_norms_are_part_of_their_convolutions(half):
    class Stage(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = Backbone(BACKBONES["resnet50"], "frozen", trainable_layers=5).body["layer2"][:2]

        def forward(self, x):
            return self.blocks(x, Affine.of(frozen_norms(self.blocks)) if folds(x) else None)

    network = Stage()
    assert all(isinstance(block, FrozenBottleneck) for block in network.blocks)
    for name, buffer in network.named_buffers():
        torch.nn.init.uniform_(buffer, 0.5, 1.5) if name.endswith(("weight", "var")) else torch.nn.init.normal_(buffer)
    for maps in (torch.randn(1, 256, 9, 6), torch.randn(1, 256, 6, 8).contiguous(memory_format=torch.channels_last)):
        assert_as_exact(network, maps.requires_grad_(), half=half)


@fast
def test_a_frozen_norm_is_part_of_the_first_convolution():
    body = Backbone(BACKBONES["resnet50"], "frozen", trainable_layers=5, finest_stride=4).body
    torch.nn.init.uniform_(body.bn1.weight, 0.5, 1.5)
    torch.nn.init.normal_(body.bn1.bias)

    class Stem(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = body
            for name in [name for name in body if name.startswith("layer")]:
                body[name] = torch.nn.Identity()

        def forward(self, images):
            return self.body(images)["0"]

    assert_as_exact(Stem(), torch.randn(2, 3, 37, 45))


@fast
def test_ffn_of_many_rows_in_pieces():
    ffn, x = FFN(8, 16, dropout=0.5).eval(), torch.randn(2, PIECE - 100, 8)
    with torch.no_grad():
        torch.testing.assert_close(ffn(x), ffn._at_once(x))
        with backend("plain"):
            torch.testing.assert_close(ffn(x), ffn._at_once(x), rtol=0, atol=0)


@fast
def test_values_are_masked_where_anything_is_padded():
    attention = MultiScaleDeformableAttention(8, 2, len(SHAPES), 4)
    queries, references, tokens = torch.randn(1, 3, 8), torch.rand(1, 3, 2, 2), torch.randn(1, 42, 8)
    for mask in (torch.zeros(1, 42, dtype=torch.bool), torch.arange(42)[None] % 5 == 0):
        with backend("plain"):
            want = attention(queries, references, tokens, SHAPES, mask)
        torch.testing.assert_close(attention(queries, references, tokens, SHAPES, mask), want)


@fast
@pytest.mark.parametrize("name", ["shapes/ms-detr-c", "coco/ms-detr-pp-300"])
def test_losses_and_gradients_of_a_detector(name):
    config = recipes.get(name).override(
        small.SMALL | {"model.pretrained": "none", "model.num_classes": 8, "ms_detr.rule": "exclusive"}
    )
    torch.manual_seed(0)
    detector, criterion = build_detector(config).train(), build_criterion(config)
    for module in detector.modules():
        if isinstance(module, FrozenBottleneck):
            module.bn3.weight.fill_(0.1)  # untrained and without statistics, its maps would grow from block to block
    batch = ImageBatch.from_images([torch.randn(3, 64, 64), torch.randn(3, 48, 64)])
    images, mask = batch.images, batch.mask
    boxes = [torch.rand(2, 4) * 0.3 + 0.3 for _ in range(2)]
    targets = Targets.from_list([torch.tensor([0, 3]), torch.tensor([5, 1])], boxes)
    found = []
    for choice, dtype in (("plain", torch.float32), ("auto", torch.float32), ("plain", torch.float64)):
        with backend(choice):
            total = criterion(detector.to(dtype)(ImageBatch(images.to(dtype), mask), targets), targets).total
            total.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in detector.parameters() if p.grad is not None])
        found.append((total.item(), norm.item()))
        detector.zero_grad(set_to_none=True)
    for (loss, norm), (exact_loss, exact_norm) in zip(found[:2], (found[2], found[2])):
        assert loss == pytest.approx(exact_loss, rel=1e-5)
        assert norm == pytest.approx(
            exact_norm, rel=1e-3
        )  # roundings move a few of these small maps across ReLU's kink


def test_an_exported_feed_forward_network_takes_any_batch():
    """Counting a tensor's rows while it is exported would make their number a constant of the graph."""
    network, free = FFN(8, 16).eval(), torch.export.Dim.DYNAMIC
    with torch.no_grad():
        program = torch.export.export(
            network, (torch.randn(2, 7, 8),), dynamic_shapes=({0: free, 1: free},), strict=False
        )
        x = torch.randn(3, 5, 8)
        torch.testing.assert_close(program.module()(x), network(x))
