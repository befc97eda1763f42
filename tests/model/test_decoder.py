"""What a decoder can be given: positions made anew in every layer, and a norm of what its predictors read."""

import torch
from torch import nn

from msdetr.model import Decoder
from msdetr.modules import Baseline, Pyramid, ReferencePositions, ScaledReferencePositions
from msdetr.structures import QueryGroup

DIM, LAYERS = 32, 3


def decoder(**parts) -> Decoder:
    torch.manual_seed(0)
    made = Decoder([Baseline(DIM, 4, 1, 2, 32, 0.0) for _ in range(LAYERS)], DIM, 5, **parts).eval()
    for head in made.box_heads:  # they start at 0, where they correct nothing
        nn.init.normal_(head.layers[-1].weight, std=0.1)
    return made


def inputs() -> tuple[list[QueryGroup], Pyramid]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(1, 16, DIM, generator=generator)
    memory = Pyramid(
        tokens, torch.zeros_like(tokens), torch.zeros(1, 16, dtype=torch.bool), ((4, 4),), torch.ones(1, 1, 2)
    )
    contents, positions = torch.randn(2, 1, 6, DIM, generator=generator)
    return [QueryGroup("primary", contents, positions, torch.rand(1, 6, 4, generator=generator) * 0.5 + 0.25)], memory


def test_positions_are_made_from_the_references_of_every_layer():
    seen = []

    class Positions(nn.Module):
        def forward(self, layer, queries, references, memory):
            seen.append(references)
            return references.repeat(1, 1, DIM // 4)

    found = decoder(query_positions=Positions())(*inputs())["primary"]
    assert len(seen) == LAYERS
    torch.testing.assert_close(torch.stack(seen), found.references)
    assert not torch.allclose(found.predictions.boxes, decoder()(*inputs())["primary"].predictions.boxes)


def test_the_norm_is_for_the_predictors_alone():
    """The references are refined by what was not normalised, so they are those of a decoder without it."""
    norm = nn.LayerNorm(DIM)
    nn.init.normal_(norm.weight, mean=2.0)
    plain, normed = decoder()(*inputs())["primary"], decoder(output_norm=norm)(*inputs())["primary"]
    torch.testing.assert_close(plain.references, normed.references)
    assert not torch.allclose(plain.predictions.logits, normed.predictions.logits)
    assert not torch.allclose(plain.predictions.boxes, normed.predictions.boxes)


def test_positions_of_boxes_are_scaled_by_contents_after_the_first_layer():
    (group,), memory = inputs()
    torch.manual_seed(0)
    plain, scaled = ReferencePositions(DIM), ScaledReferencePositions(DIM)
    scaled.mlp.load_state_dict(plain.mlp.state_dict())
    given = group.contents, group.references, memory
    torch.testing.assert_close(plain(0, *given), plain(1, *given))
    torch.testing.assert_close(scaled(0, *given), plain(0, *given))
    torch.testing.assert_close(scaled(1, *given), plain(1, *given) * scaled.scale(group.contents))


def test_heads_may_be_shared_by_layers_that_refine():
    shared = decoder(shared_heads=True)
    assert len(shared.class_heads) == len(shared.box_heads) == 1
    references = shared(*inputs())["primary"].references
    assert not torch.allclose(references[0], references[1])
