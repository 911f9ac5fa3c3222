"""The region extractor: any number of views, its ablations, and what the significance does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from learner.evaluation.regions import box_iou
from rrg.model.boxes import attention_boxes, box_maps
from rrg.model.extractor import ExtractorShape, RegionExtractor, RegionOutput
from rrg.model.features import FeatureBatch

SHAPE = ExtractorShape(
    patch_channels=12,
    grid=4,
    size=32,
    heads=2,
    layers=1,
    dropout=0.0,
    global_tokens=2,
    regions=3,
    findings=5,
    hidden=16,
)


def make(shape: ExtractorShape = SHAPE) -> RegionExtractor:
    torch.manual_seed(0)
    extractor = RegionExtractor(shape)
    extractor.region_queries.copy_(torch.randn(shape.regions, shape.hidden))
    extractor.set_token_scale(1.0)
    return extractor


def images(studies: int, views: int = 1, shape: ExtractorShape = SHAPE) -> FeatureBatch:
    patches = views * shape.grid**2
    codes = torch.zeros(studies, patches, dtype=torch.long)
    return FeatureBatch(torch.randn(studies, patches, shape.patch_channels), codes, codes == 0)


@pytest.mark.parametrize(("regions", "global_tokens"), [(3, 2), (0, 2), (3, 0)])
@pytest.mark.parametrize("gate", [True, False])
def test_every_ablation_gives_finite_outputs_and_gradients(regions: int, global_tokens: int, gate: bool) -> None:
    extractor = make(replace(SHAPE, regions=regions, global_tokens=global_tokens, gate=gate))
    output = extractor(images(2))
    assert output.gated_tokens().shape == (2, regions, SHAPE.hidden)
    assert output.global_tokens.shape == (2, global_tokens, SHAPE.hidden)
    assert output.study_findings.shape == (2, SHAPE.findings)
    values = [*vars(output).values(), output.gated_tokens()]
    assert all(value.isfinite().all() for value in values)
    torch.stack([value.sum() for value in values]).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in extractor.parameters())


def test_attention_sums_to_one_over_the_patches_that_are_there() -> None:
    batch = images(2, views=2)
    mask = batch.mask.clone()
    mask[0, SHAPE.grid**2 :] = False
    attention = make()(FeatureBatch(batch.values, batch.views, mask)).attention
    assert torch.allclose(attention.sum(-1), torch.ones(2, SHAPE.regions), atol=1e-5)
    assert (attention[0, :, SHAPE.grid**2 :] == 0).all()


def test_features_are_taken_in_any_precision() -> None:
    extractor = make().to(torch.bfloat16)
    output = extractor(images(2))
    output.gated_tokens().sum().backward()
    assert output.attention.dtype == torch.bfloat16
    assert attention_boxes(output.attention, SHAPE.grid).dtype == torch.float32


def test_padding_changes_nothing() -> None:
    extractor, one = make(), images(1)
    filled = [torch.cat([part, torch.ones_like(part)], dim=1) for part in (one.values, one.views)]
    padded = FeatureBatch(*filled, torch.cat([one.mask, torch.zeros_like(one.mask)], dim=1))
    assert torch.allclose(extractor(one).gated_tokens(), extractor(padded).gated_tokens(), atol=1e-5)


def test_without_a_gate_every_region_counts_in_full() -> None:
    output = make(replace(SHAPE, gate=False))(images(2))
    assert torch.equal(output.gated_tokens(), output.base + output.content)


def content_norms(output: RegionOutput) -> torch.Tensor:
    """[B, R]: how much of a region's token is its content."""
    return (output.gated_tokens() - output.base).norm(dim=-1)


def test_abnormal_regions_weigh_more() -> None:
    """Region r is abnormal where patch r is marked; a few steps on the significance alone, then new images."""
    extractor = make()
    optimizer = torch.optim.Adam(extractor.parameters(), lr=3e-3)

    def draw(studies: int) -> tuple[FeatureBatch, torch.Tensor]:
        batch = images(studies)
        abnormal = torch.rand(studies, SHAPE.regions) < 0.4
        batch.values[:, : SHAPE.regions, 0] += 8.0 * abnormal
        return batch, abnormal

    for _ in range(150):
        batch, abnormal = draw(32)
        loss = F.binary_cross_entropy_with_logits(extractor(batch).significance, abnormal.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    batch, abnormal = draw(200)
    gated = content_norms(extractor(batch))
    assert gated[abnormal].mean() > 2 * gated[~abnormal].mean()
    extractor.shape = replace(SHAPE, gate=False)
    ungated = content_norms(extractor(batch))
    assert ungated[abnormal].mean() < 1.5 * ungated[~abnormal].mean()


def test_attention_learns_to_lie_where_the_boxes_are() -> None:
    """Boxes move with a marked patch; they are read back from new images."""
    shape = replace(SHAPE, grid=8, regions=2)
    extractor = make(shape)
    optimizer = torch.optim.Adam(extractor.parameters(), lr=3e-3)

    def draw(studies: int) -> tuple[FeatureBatch, torch.Tensor]:
        batch = images(studies, shape=shape)
        shift = torch.randint(3, (studies,))
        batch.values[torch.arange(studies), shift, 0] += 8.0
        left = 0.125 * shift[:, None] + torch.tensor([0.0, 0.25])
        top = torch.tensor([0.0, 0.5]).expand_as(left)
        return batch, torch.stack([left, top, left + 0.25, top + 0.4], dim=-1)

    for _ in range(350):
        batch, boxes = draw(32)
        loss = -(box_maps(boxes, shape.grid) * extractor(batch).attention.clamp_min(1e-9).log()).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    batch, boxes = draw(100)
    found = attention_boxes(extractor(batch).attention, shape.grid).flatten(0, 1)
    ious = [box_iou(*pair) for pair in zip(found.tolist(), boxes.flatten(0, 1).tolist(), strict=True)]
    assert sum(ious) / len(ious) > 0.8
