"""Diagrams of the decoder layers: recorded as the layers ran, and drawn from the record."""

import pytest
import torch
from drawing import drawn, overlapping_texts
from small import config

from msdetr.analysis.architecture import Cost, count_parameters, data_flow, flow_text, measure_costs, trace_layer
from msdetr.methods import build_criterion, build_detector
from msdetr.structures import ImageBatch, Targets
from msdetr.viz.architecture import cost_figure, variant_figure

ORDERS = {
    "baseline": "self_attention > cross_attention > ffn",
    "a": "self_attention > cross_attention > ffn *",
    "b": "cross_attention > self_attention > ffn *",
    "c": "cross_attention * > self_attention > ffn",
    "d": "self_attention * > cross_attention > ffn",
}


def detector(variant, **changes):
    return build_detector(config(variant, **changes))


@pytest.fixture
def batch():
    return ImageBatch.from_images([torch.randn(3, 64, 64)])


@pytest.mark.parametrize("variant", ORDERS)
@pytest.mark.parametrize("layer", [0, 1])
def test_the_trace_is_the_order_of_figure_4(variant, layer, batch):
    trace = trace_layer(detector(variant), batch, layer)
    assert trace.order() == ORDERS[variant] and trace.output == "ffn"
    assert [step.reads for step in trace.steps] == ["queries", *(step.module for step in trace.steps[:2])]
    assert [step.module for step in trace.steps if step.sees_image] == ["cross_attention"]
    assert all(step.shape == (1, 5, 32) for step in trace.steps)


@pytest.mark.parametrize(
    ("variant", "changes", "reads", "reused"),
    [
        ("baseline", {}, ["ffn", "ffn"], False),
        ("a", {}, ["ffn", "ffn", "ffn"], True),
        ("c", {}, ["ffn", "ffn", "cross_attention", "one_to_many.ffns.0", "one_to_many.ffns.0"], False),
        ("c", {"ms_detr.candidate_ffn": "without"}, ["ffn", "ffn", "cross_attention", "cross_attention"], False),
        ("d", {"model.box_refine": False, "two_stage": None,
               "model.look_forward_twice": False},
         ["ffn", "ffn", "self_attention", "one_to_many.ffns.0", "one_to_many.ffns.0"], False),
    ],
)  # fmt: skip
def test_the_trace_tells_who_reads_what(variant, changes, reads, reused, batch):
    trace = trace_layer(detector(variant, **changes), batch)
    assert [call.reads for call in trace.predictors] == reads
    assert trace.boxes_reused == reused


def test_tracing_leaves_no_hook_and_changes_no_mode(batch):
    model = detector("c").train()
    trace_layer(model, batch)
    data_flow(model, batch)
    assert model.training and not any(module._forward_hooks for module in model.modules())


def test_parameters_are_counted_once_and_flow_shows_shapes(batch):
    model = detector("c")
    counts = count_parameters(model)
    assert sum(counts.values()) == sum(p.numel() for p in model.parameters())
    assert counts["one-to-many only"] == sum(p.numel() for p in model.decoder.one_to_many.parameters()) > 0
    assert count_parameters(model.strip())["one-to-many only"] == 0
    text = flow_text(data_flow(model, batch))
    assert "primary.predictions.logits 2×1×5×8" in text and text.index("backbone") < text.index("encoder") < text.index(
        "decoder"
    )


@pytest.mark.filterwarnings("error")
def test_figures_draw_without_overlapping_text(batch):
    names = {f"({v})" if v != "baseline" else v: v for v in ORDERS}
    detectors = {name: detector(v) for name, v in names.items()}
    figure = variant_figure({name: trace_layer(model, batch) for name, model in detectors.items()})
    assert drawn(figure).std() > 0 and overlapping_texts(figure) == []
    parameters = {name: count_parameters(model) for name, model in detectors.items()}
    figure = cost_figure(parameters, {name: Cost(10.0, 5.0) for name in detectors})
    assert drawn(figure).std() > 0 and overlapping_texts(figure) == []


def test_measuring_keeps_gradients_clean(batch):
    model, targets = detector("c"), Targets.from_list([torch.tensor([0])], [torch.full((1, 4), 0.5)])
    cost = measure_costs({"c": model}, {"c": build_criterion(config("c"))}, batch, targets, repeats=1)["c"]
    assert cost.training > 0 and cost.inference > 0
    assert all(p.grad is None for p in model.parameters())


def test_methods_with_queries_that_only_training_has_are_measured(batch):
    own, targets = config("c", hybrid=True), Targets.from_list([torch.tensor([0])], [torch.full((1, 4), 0.5)])
    cost = measure_costs({"h": build_detector(own)}, {"h": build_criterion(own)}, batch, targets, repeats=1)["h"]
    assert cost.training > 0 and cost.inference > 0
