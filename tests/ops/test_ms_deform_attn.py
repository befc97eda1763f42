"""The operator on every backend: values, gradients, precision, registration, and the faults F32 to F43."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operator_inputs import Inputs

import msdetr.ops
from msdetr.errors import MSDETRError
from msdetr.ops import cpu, ms_deform_attn, plain
from msdetr.ops.reference import ms_deform_attn_composite as composite
from msdetr.ops.reference import ms_deform_attn_loop

GOLDEN = Path(__file__).with_name("golden")
HALF_TYPES = (torch.float16, torch.bfloat16)


# --------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", ["case0", "case2", "case5"])
def test_golden_values_and_gradients(case, dtype, device):
    arrays = {name: torch.from_numpy(array) for name, array in np.load(GOLDEN / f"{case}.npz").items()}
    inputs = Inputs(
        arrays["value"],
        arrays["spatial_shapes"].tolist(),
        arrays["sampling_locations"],
        arrays["attention_weights"],
        arrays["grad_output"],
    )
    results = inputs.to(device, dtype).run()
    names = ("output", "grad_value", "grad_sampling_locations", "grad_attention_weights")
    for name, actual in zip(names, results, strict=True):
        expected = arrays[name].double()
        if dtype == torch.float32:
            rtol, atol = 1e-4, 1e-3 * expected.abs().max().item() if name == names[2] else 2e-5
        else:  # gradients of some cases are stored in float32
            rtol, atol = (1e-10, 1e-10) if arrays[name].dtype == torch.float64 else (1e-6, 1e-7)
        torch.testing.assert_close(actual.cpu().double(), expected, rtol=rtol, atol=atol, msg=name)


def test_golden_edges(device):
    arrays = {name: torch.from_numpy(array) for name, array in np.load(GOLDEN / "edge.npz").items()}
    value, locations, weights = (
        arrays[name].to(device, torch.float64) for name in ("value", "sampling_locations", "attention_weights")
    )
    output = ms_deform_attn(value, arrays["spatial_shapes"], locations, weights)  # shapes as a tensor
    torch.testing.assert_close(output.cpu(), arrays["output"], rtol=1e-10, atol=1e-10)


@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    channels=st.integers(1, 40),
    shapes=st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
    queries=st.integers(1, 3),
    points=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_all_backends_agree_with_the_loop(batch, heads, channels, shapes, queries, points, seed):
    inputs = Inputs.random(
        batch=batch, heads=heads, channels=channels, shapes=shapes, queries=queries, points=points, seed=seed
    )
    expected = ms_deform_attn_loop(inputs.value, shapes, inputs.locations, inputs.weights)
    with msdetr.ops.backend("plain"):
        gradients = inputs.run()[1:]
    for choice in ("plain", "gather", "auto"):
        with msdetr.ops.backend(choice):
            output, *others = inputs.run()
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
        for actual, gradient in zip(others, gradients, strict=True):
            torch.testing.assert_close(actual, gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.skipif(not cpu.available(), reason="no CPU library")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set_and_any_number_of_threads(dtype):
    library = cpu.load()
    best, threads = library.msdetr_best_instruction_set(), torch.get_num_threads()
    # Small, and large enough for copies of one head at a time; channels that fill registers and that do not.
    cases = [{"channels": channels, "heads": 3} for channels in (1, 3, 5, 12, 16, 30, 33, 64, 130)]
    cases += [{"channels": c, "heads": 4, "shapes": [(60, 60), (30, 31)], "queries": 700, "batch": 1} for c in (30, 32)]
    try:
        for case in cases:
            inputs = Inputs.random(**case)
            expected = inputs.run(plain.forward)
            for isa in range(best + 1):
                assert library.msdetr_set_instruction_set(isa) == isa
                results = []
                for count in (1, 2, 5):
                    torch.set_num_threads(count)
                    results.append(inputs.to(dtype).run(torch_operator))
                for actual, again, more, exact in zip(*results, expected, strict=True):
                    assert torch.equal(actual, again) and torch.equal(actual, more)
                    error = (actual.double() - exact).abs().max() / exact.abs().max()
                    assert error < (1e-12 if dtype == torch.float64 else 1e-4), (case, isa, error)
    finally:
        library.msdetr_set_instruction_set(best)
        torch.set_num_threads(threads)


def torch_operator(value, shapes, locations, weights):
    """The registered operator itself, shapes flat."""
    return torch.ops.msdetr.ms_deform_attn(value, [size for shape in shapes for size in shape], locations, weights)


def test_registered_operator_in_plain_pytorch():
    inputs = Inputs.random(heads=3, points=4)
    with msdetr.ops.backend("plain"):
        for actual, expected in zip(inputs.run(torch_operator), inputs.run(), strict=True):
            torch.testing.assert_close(actual, expected)


# ------------------------------------------------------------------------------------------------------------ gradients


def _between_pixels(locations: torch.Tensor, shapes, place: str) -> torch.Tensor:
    """Locations a tenth of a pixel or more from every pixel centre, where the interpolation has kinks."""
    generator = torch.Generator().manual_seed(1)
    size = torch.tensor([(width, height) for height, width in shapes], dtype=locations.dtype)[:, None]
    if place == "inside":
        pixel = (torch.rand(locations.shape, generator=generator, dtype=locations.dtype) * (size - 1)).floor()
    else:  # the border: half outside; beyond it: wholly outside
        border = torch.tensor([-2.0, -1.0, 0.0, 1.0], dtype=locations.dtype)
        choice = border[torch.randint(4, locations.shape, generator=generator)]
        pixel = torch.where(choice < 0, choice, size - 1 + choice)
    fraction = torch.rand(locations.shape, generator=generator, dtype=locations.dtype) * 0.8 + 0.1
    return (pixel + fraction + 0.5) / size


@pytest.mark.parametrize("place", ["inside", "border and outside"])
@pytest.mark.parametrize("points", [1, 4])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("channels", [1, 5, 16])
@pytest.mark.parametrize("heads", [1, 3])
def test_gradcheck(heads, channels, levels, points, place, device):
    shapes = [(3, 2), (2, 3), (1, 1)][:levels]
    inputs = Inputs.random(batch=1, heads=heads, channels=channels, shapes=shapes, queries=2, points=points)
    locations = _between_pixels(inputs.locations, shapes, place)
    leaves = [x.to(device).requires_grad_() for x in (inputs.value, locations, inputs.weights)]
    nondeterministic = 1e-12 if device.type == "cuda" else 0.0
    assert torch.autograd.gradcheck(
        lambda value, locations, weights: ms_deform_attn(value, shapes, locations, weights),
        leaves,
        fast_mode=True,
        nondet_tol=nondeterministic,
    )


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2)])
def test_only_the_gradients_asked_for(needed, device):
    inputs = Inputs.random().to(device)
    everything = inputs.run()[1:]
    leaves = [
        x.detach().requires_grad_(i in needed) for i, x in enumerate((inputs.value, inputs.locations, inputs.weights))
    ]
    ms_deform_attn(leaves[0], inputs.shapes, *leaves[1:]).backward(inputs.grad_output)
    for i, leaf in enumerate(leaves):
        if i in needed:
            torch.testing.assert_close(leaf.grad, everything[i])
        else:
            assert leaf.grad is None


# ------------------------------------------------------------------------------------------------------------ precision


@pytest.mark.fault("F43")
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES])
def test_error_is_at_most_twice_that_of_pytorch(dtype, device):
    inputs = Inputs.random(batch=2, heads=4, channels=32, shapes=[(12, 9), (6, 5), (3, 2)], queries=100, points=4)
    inputs = replace(inputs, weights=torch.softmax(inputs.weights.flatten(3), -1).view_as(inputs.weights))
    inputs = inputs.to(device, dtype)
    exact = inputs.to(torch.float64).run(composite)
    names = ("output", "grad_value", "grad_locations", "grad_weights")
    for name, ours, theirs, expected in zip(names, inputs.run(), inputs.run(composite), exact, strict=True):
        assert ours.dtype == dtype
        error, allowed = ((x.double() - expected).abs() for x in (ours, theirs))
        assert error.mean() <= 2 * allowed.mean(), (name, error.mean(), allowed.mean())
        if name != "grad_locations":  # has jumps at pixel centres: a rounding across one is as large as the gradient
            assert error.max() <= 2 * allowed.max(), (name, error.max(), allowed.max())


@pytest.mark.fault("F43")
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_half_values_with_single_locations(dtype, device):
    inputs = Inputs.random(channels=16, queries=20).to(device)
    halves = replace(inputs.to(torch.float32), value=inputs.value.to(dtype), grad_output=inputs.grad_output.to(dtype))
    results = halves.run()
    assert [x.dtype for x in results] == [dtype, dtype, torch.float32, torch.float32]
    exact = halves.to(torch.float64).run(composite)
    for actual, expected in zip(results, exact, strict=True):
        precision = torch.finfo(actual.dtype).eps
        assert (actual.double() - expected).abs().max() <= max(precision, 1e-5) * expected.abs().max()


# --------------------------------------------------------------------------------------------------------- registration


@pytest.mark.parametrize(
    "needed", [(True, True, True), (True, False, False), (False, True, True), (False, False, False)]
)
def test_opcheck(needed, device):
    inputs = Inputs.random().to(device, torch.float32)
    leaves = (inputs.value, inputs.locations, inputs.weights)
    value, locations, weights = (x.requires_grad_(need) for x, need in zip(leaves, needed, strict=True))
    results = torch.library.opcheck(torch.ops.msdetr.ms_deform_attn.default, (value, [5, 4, 3, 2], locations, weights))
    assert len(results) == 4 and set(results.values()) == {"SUCCESS"}, results


def test_autocast(device):
    inputs = Inputs.random().to(device, torch.float32)
    arguments = (inputs.value, inputs.shapes, inputs.locations, inputs.weights)
    with torch.autocast(device.type, torch.bfloat16):
        outputs = [ms_deform_attn(*arguments), torch_operator(*arguments)]
        double = ms_deform_attn(
            inputs.value.double(), inputs.shapes, inputs.locations.double(), inputs.weights.double()
        )
    expected = ms_deform_attn(inputs.value.bfloat16(), *arguments[1:])  # locations and weights stay in fp32
    for output in outputs:
        assert output.dtype == torch.bfloat16
        assert torch.equal(output, expected)
    assert double.dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_graph_breaks(dynamic, device):
    inputs = Inputs.random().to(device, torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *arguments: 2 * ms_deform_attn(*arguments), fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    for actual, expected in zip(inputs.run(compiled), inputs.run(lambda *a: 2 * ms_deform_attn(*a)), strict=True):
        torch.testing.assert_close(actual, expected)


@pytest.mark.slow
def test_compiled_once_it_serves_every_size(device):
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(ms_deform_attn, fullgraph=True, dynamic=True, backend=counter)
    for shapes in (((5, 4), (3, 2)), ((7, 6), (4, 5)), ((9, 3), (6, 7))):
        inputs = Inputs.random(shapes=shapes).to(device, torch.float32)
        for actual, expected in zip(inputs.run(compiled), inputs.run(), strict=True):
            torch.testing.assert_close(actual, expected)
    assert counter.frame_count == 1


class Module(torch.nn.Module):
    """The operator with its shapes fixed, for export."""

    def __init__(self, shapes) -> None:
        super().__init__()
        self.shapes = shapes

    def forward(self, value, locations, weights):
        return ms_deform_attn(value, self.shapes, locations, weights)


@pytest.mark.slow
def test_export(device):
    inputs = Inputs.random().to(device, torch.float32)
    tensors = (inputs.value, inputs.locations, inputs.weights)
    program = torch.export.export(Module(inputs.shapes), tensors)
    expected = ms_deform_attn(inputs.value, inputs.shapes, inputs.locations, inputs.weights)
    torch.testing.assert_close(program.module()(*tensors), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the exporter
def test_onnx(tmp_path):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    inputs = Inputs.random().to(torch.float32)
    tensors = (inputs.value, inputs.locations, inputs.weights)
    path = str(tmp_path / "operator.onnx")
    torch.onnx.export(Module(inputs.shapes), tensors, dynamo=True, verbose=False).save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]
    (output,) = session.run(None, dict(zip(names, (x.numpy() for x in tensors), strict=True)))
    expected = ms_deform_attn(inputs.value, inputs.shapes, inputs.locations, inputs.weights)
    torch.testing.assert_close(torch.from_numpy(output), expected, rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------------------------------- faults


def bad(**changes) -> Inputs:
    return replace(Inputs.random(), **changes)


_GOOD = Inputs.random()


@pytest.mark.parametrize(
    "changes, error, message",
    [
        pytest.param(changes, error, message, marks=pytest.mark.fault(fault))
        for fault, changes, error, message in [
            ("F32", {"value": _GOOD.value[0]}, ValueError, r"value must be \[B, S, M, D\], got \[26, 2, 4\]"),
            ("F32", {"locations": _GOOD.locations[..., 0]}, ValueError, "sampling_locations must be"),
            ("F32", {"locations": _GOOD.locations[:, :, :1]}, ValueError, r"expected \[2, Q, 2, 2, P, 2\]"),
            ("F32", {"locations": _GOOD.locations[:1]}, ValueError, "do not fit value"),
            ("F32", {"locations": _GOOD.locations.repeat(1, 1, 1, 1, 1, 2)}, ValueError, "do not fit value"),
            ("F32", {"locations": _GOOD.locations[:, :, :, :1]}, ValueError, "are for 1 levels, spatial_shapes for 2"),
            ("F32", {"weights": _GOOD.weights[:, :2]}, ValueError, r"expected \[2, 3, 2, 2, 2\]"),
            ("F32", {"weights": _GOOD.weights[..., None]}, ValueError, "attention_weights must be"),
            ("F32", {"shapes": [5, 4, 3, 2]}, ValueError, "must be L pairs"),
            ("F32", {"shapes": torch.tensor([5, 4, 3, 2])}, ValueError, r"an integer tensor \[L, 2\]"),
            ("F32", {"shapes": torch.tensor([[5.0, 4.0], [3.0, 2.0]])}, ValueError, r"an integer tensor \[L, 2\]"),
            ("F32", {"shapes": [(5.0, 4.0), (3.0, 2.0)]}, ValueError, "must be L pairs"),
            ("F32", {"value": _GOOD.value.to_sparse()}, TypeError, "value must be a dense tensor"),
            ("F35", {"value": _GOOD.value.to(torch.complex128)}, TypeError, "value must be floating point"),
            ("F35", {"value": _GOOD.value.to(torch.float8_e4m3fn)}, TypeError, "value must be floating point"),
            ("F33", {"shapes": [(5, 4), (3, 3)]}, ValueError, r"hold 29 tokens, value \[2, 26, 2, 4\] has 26"),
            ("F34", {"shapes": [(5, 4), (0, 2)]}, ValueError, r"spatial_shapes\[1\] is \(0, 2\)"),
            ("F34", {"shapes": [(-5, -4), (3, 2)]}, ValueError, r"spatial_shapes\[0\] is \(-5, -4\)"),
            ("F35", {"value": _GOOD.value.float()}, TypeError, "dtypes differ: value torch.float32"),
            ("F35", {"weights": _GOOD.weights.half()}, TypeError, "dtypes differ"),
            ("F35", {"locations": _GOOD.locations.long()}, TypeError, "sampling_locations must be floating point"),
            ("F35", {"value": _GOOD.value.int()}, TypeError, "value must be floating point, got torch.int32"),
            ("F35", {"weights": _GOOD.weights.to("meta")}, TypeError, "attention_weights is on meta, value on cpu"),
            ("F38", {"shapes": []}, ValueError, "at least one level"),
            ("F38", {"locations": _GOOD.locations[:, :, :, :, :0]}, ValueError, "at least one is needed"),
        ]
    ],
)
@pytest.mark.parametrize("choice", ["plain", "gather", "auto"])
def test_rejected(changes, error, message, choice):
    inputs = bad(**changes)
    arguments = (inputs.value, inputs.shapes, inputs.locations, inputs.weights)
    with msdetr.ops.backend(choice), pytest.raises(error, match=message) as raised:
        ms_deform_attn(*arguments)
    assert isinstance(raised.value, MSDETRError)


@pytest.mark.fault("F36")
def test_non_contiguous_is_bit_identical(device):
    inputs = Inputs.random(channels=12, heads=3, queries=20).to(device, torch.float32)
    strided = Inputs(
        inputs.value.transpose(1, 3).contiguous().transpose(1, 3),
        inputs.shapes,
        inputs.locations.repeat_interleave(2, dim=1)[:, ::2],
        inputs.weights.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0),
        inputs.grad_output.T.contiguous().T if inputs.grad_output.ndim == 2 else inputs.grad_output.mT.contiguous().mT,
    )
    assert not any(x.is_contiguous() for x in (strided.value, strided.locations, strided.weights, strided.grad_output))
    for name, ours, expected in zip(
        ("output", "value", "locations", "weights"), strided.run(), inputs.run(), strict=True
    ):
        if name == "value" and device.type == "cuda":  # summed atomically
            torch.testing.assert_close(ours, expected)
        else:
            assert torch.equal(ours, expected), name


@pytest.mark.fault("F37")
@pytest.mark.parametrize("batch, queries", [(0, 3), (2, 0), (0, 0)])
def test_nothing_to_do(batch, queries, device):
    inputs = Inputs.random(batch=batch, queries=queries).to(device)
    output, grad_value, grad_locations, grad_weights = inputs.run()
    assert output.shape == (batch, queries, 8)
    assert grad_value.shape == inputs.value.shape and not grad_value.any()
    assert grad_locations.shape == inputs.locations.shape and grad_weights.shape == inputs.weights.shape


def test_batch_of_65_is_65_images(device):
    inputs = Inputs.random(batch=65, queries=2).to(device)
    one = replace(
        inputs, **{name: getattr(inputs, name)[64:] for name in ("value", "locations", "weights", "grad_output")}
    )
    for whole, single in zip(inputs.run(), one.run(), strict=True):
        torch.testing.assert_close(whole[64:], single)


@pytest.mark.parametrize(
    "location",
    [
        *(pytest.param(bad, marks=pytest.mark.fault("F39")) for bad in (torch.nan, torch.inf, -torch.inf)),
        *(pytest.param(far, marks=pytest.mark.fault("F40")) for far in (1e30, -1e30, 3e38, 5.0, -5.0)),
    ],
)
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_location_that_no_pixel_reaches_contributes_nothing(location, axis, dtype, device):
    inputs = Inputs.random().to(device, dtype)
    lost = inputs.locations.clone()
    lost[1, 2, 0, 1, 0, axis] = location
    dropped = inputs.weights.clone()
    dropped[1, 2, 0, 1, 0] = 0
    output, grad_value, grad_locations, grad_weights = replace(inputs, locations=lost).run()
    expected = replace(inputs, weights=dropped).run()
    torch.testing.assert_close(output, expected[0])
    torch.testing.assert_close(grad_value, expected[1])
    assert grad_weights[1, 2, 0, 1, 0] == 0
    assert not grad_locations[1, 2, 0, 1, 0].any()
    assert grad_locations.isfinite().all() and grad_weights.isfinite().all()


@pytest.mark.fault("F41")
def test_too_many_tokens_are_rejected():
    value = torch.empty(1).expand(1, 2**31, 1, 1)
    locations, weights = torch.rand(1, 1, 1, 1, 1, 2), torch.rand(1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="must be below 2\\^31"):
        ms_deform_attn(value, [(2**16, 2**15)], locations, weights)


@pytest.mark.fault("F41")
@pytest.mark.slow
@pytest.mark.skipif(not cpu.available(), reason="no CPU library")
def test_more_than_2_31_elements():
    side, heads, channels = 8200, 8, 4
    try:
        value = torch.empty(
            1, side * side, heads, channels
        )  # 8.6 GB of address space; only the last pixels are touched
    except RuntimeError as error:
        pytest.skip(f"no 8.6 GB of address space: {error}")
    assert value.numel() > 2**31
    value[:, -2:] = torch.tensor([1.0, 3.0])[:, None, None]
    value[:, -side - 2 : -side] = 0
    locations = torch.tensor([(side - 1) / side, (side - 0.5) / side]).expand(1, 1, heads, 1, 1, 2)
    with msdetr.ops.backend("native"):
        output = ms_deform_attn(value, [(side, side)], locations, torch.ones(1, 1, heads, 1, 1))
    # Halfway between the last two pixels of the last row, but for what fp32 makes of x * 8200.
    torch.testing.assert_close(output, torch.full_like(output, 2.0), rtol=0, atol=2e-3)


@pytest.mark.fault("F42")
@pytest.mark.skipif(not cpu.available(), reason="no CPU library")
def test_a_failing_library_call_raises(monkeypatch):
    monkeypatch.setitem(cpu._DTYPES, torch.float32, 99)  # a type that the library does not know
    inputs = Inputs.random().to(torch.float32)
    with msdetr.ops.backend("native"), pytest.raises(RuntimeError, match="msdetr_deform_attn_forward failed"):
        ms_deform_attn(inputs.value, inputs.shapes, inputs.locations, inputs.weights)
