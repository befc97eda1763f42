"""What only a GPU can show: streams, devices, repeatability, launch failures. The other tests of the operator run on
CUDA too, through the ``device`` fixture. Small calls under compute-sanitizer:

    compute-sanitizer --tool memcheck python -m pytest tests/ops -m gpu
"""

from __future__ import annotations

import pytest
import torch
from operator_inputs import Inputs

import msdetr.ops
from msdetr.ops import cuda, ms_deform_attn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not cuda.available(), reason=f"no CUDA backend: {cuda.failure()}"),
]


@pytest.fixture(autouse=True)
def native():
    with msdetr.ops.backend("native"):
        yield


def _forward(inputs: Inputs) -> torch.Tensor:
    return ms_deform_attn(inputs.value, inputs.shapes, inputs.locations, inputs.weights)


def test_current_stream():
    inputs = Inputs.random(channels=32, heads=8, queries=200, batch=4).to("cuda", torch.float32)
    expected = _forward(inputs)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)  # whoever runs on another stream reads what is not there yet
        late = Inputs(inputs.value * 1, inputs.shapes, inputs.locations, inputs.weights, inputs.grad_output)
        output = _forward(late)
    stream.synchronize()
    assert torch.equal(output, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device only")
def test_a_device_that_is_not_the_current_one():
    inputs = Inputs.random()
    with torch.cuda.device(0):
        results = inputs.to("cuda:1", torch.float64).run()
        assert torch.cuda.current_device() == 0
    for actual, expected in zip(results, inputs.run(), strict=True):
        torch.testing.assert_close(actual.cpu(), expected)


def test_gradients_are_repeatable_in_deterministic_mode():
    inputs = Inputs.random(channels=32, heads=8, queries=300, points=4).to("cuda", torch.float32)
    expected = inputs.run()
    torch.use_deterministic_algorithms(True)
    try:
        first, *more = (inputs.run() for _ in range(20))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for other in more for a, b in zip(other, first, strict=True))
    for actual, wanted in zip(first, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)


def test_forward_is_repeatable():
    inputs = Inputs.random(channels=32, heads=8, queries=300, points=4).to("cuda", torch.float32)
    first = _forward(inputs)
    assert all(torch.equal(_forward(inputs), first) for _ in range(250))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_of_an_encoder(dtype):
    shapes = [(13, 17), (7, 9), (3, 1)]
    queries = sum(height * width for height, width in shapes)
    inputs = Inputs.random(channels=32, heads=8, shapes=shapes, queries=queries, batch=20).to(dtype).to(torch.float64)
    assert cuda.case_of(inputs.value.to(dtype), inputs.locations.to(dtype), need_value=True).pooled
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    with msdetr.ops.backend("plain"):
        expected = inputs.run()
    for actual, exact in zip(inputs.to("cuda", dtype).run(), expected, strict=True):
        torch.testing.assert_close(actual.cpu().double(), exact, rtol=0, atol=tolerance * exact.abs().max().item())


def test_misaligned_tensors():
    inputs = Inputs.random(channels=8).to("cuda", torch.float32)
    storage = torch.zeros(inputs.value.numel() + 1, device="cuda")
    shifted = storage[1:].view_as(inputs.value).copy_(inputs.value)
    assert shifted.data_ptr() % 16 != 0
    output = ms_deform_attn(shifted, inputs.shapes, inputs.locations, inputs.weights)
    assert torch.equal(output, _forward(inputs))


def test_small_calls_of_many_kinds():
    """300 calls of 20 kinds: every kind has kernels of its own, which take half a second to compile."""
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        draw = lambda low, high, g=generator: int(torch.randint(low, high + 1, (1,), generator=g))
        kind = seed % 20
        inputs = Inputs.random(
            batch=draw(1, 3),
            heads=1 + kind % 4,
            channels=(4, 7, 12, 16, 32)[kind % 5],
            shapes=[(draw(1, 7), draw(1, 7)) for _ in range(1 + kind % 3)],
            queries=draw(1, 40),
            points=1 + kind % 4,
            seed=seed,
        )
        with msdetr.ops.backend("plain"):
            expected = inputs.run()
        for actual, exact in zip(inputs.to("cuda").run(), expected, strict=True):
            torch.testing.assert_close(actual.cpu(), exact, rtol=1e-9, atol=1e-9)


@pytest.mark.fault("F42")
def test_a_failed_launch_raises(monkeypatch):
    inputs = Inputs.random().to("cuda", torch.float32)
    _forward(inputs)  # compiled before the failure
    monkeypatch.setattr(cuda, "_LANES", 4096)  # more threads per block than there can be
    cuda._plan.cache_clear()
    try:
        with pytest.raises(Exception, match="(?i)invalid|launch"):
            _forward(inputs)
    finally:
        cuda._plan.cache_clear()


@pytest.mark.fault("F41")
@pytest.mark.slow
def test_more_than_2_31_elements():
    side, heads, channels = 8200, 8, 4
    if torch.cuda.mem_get_info()[0] < 10 << 30:
        pytest.skip("needs 10 GB of GPU memory")
    value = torch.zeros(1, side * side, heads, channels, device="cuda")
    value[:, -2:] = torch.tensor([1.0, 3.0], device="cuda")[:, None, None]
    locations = torch.tensor([(side - 1) / side, (side - 0.5) / side], device="cuda").expand(1, 1, heads, 1, 1, 2)
    output = ms_deform_attn(value, [(side, side)], locations, torch.ones(1, 1, heads, 1, 1, device="cuda"))
    torch.testing.assert_close(output, torch.full_like(output, 2.0), rtol=0, atol=2e-3)
