"""Boxes as maps over patches, and read back from maps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from learner.evaluation.regions import box_iou
from rrg.data.findings import FINDINGS, Sign
from rrg.data.regions import REGIONS
from rrg.data.render import boxes_of
from rrg.model.boxes import attention_boxes, box_maps

GRID = 14


def rendered_boxes(patients: int) -> Tensor:
    """[patients, 29, 4]: every third patient is healthy, the others have one finding each."""
    boxes = []
    for number in range(patients):
        signs = (Sign(FINDINGS[number % len(FINDINGS)], ("right", "left"), "whole"),) if number % 3 else ()
        found = boxes_of(f"patient{number}", signs)
        boxes.append([[found[name].x0, found[name].y0, found[name].x1, found[name].y1] for name in REGIONS])
    return torch.tensor(boxes)


def test_a_map_shares_the_box_out_over_its_patches() -> None:
    maps = box_maps(rendered_boxes(4), GRID)
    assert maps.shape == (4, len(REGIONS), GRID**2)
    assert torch.allclose(maps.sum(-1), torch.ones(4, len(REGIONS)), atol=1e-5)
    assert (maps >= 0).all()
    whole = box_maps(torch.tensor([0.0, 0.0, 1.0, 1.0]), GRID).unflatten(-1, (GRID, GRID))
    assert torch.allclose(whole[1:-1, 1:-1], whole[5, 5].expand(GRID - 2, GRID - 2))


def test_rows_run_from_the_top_left() -> None:
    top_right = box_maps(torch.tensor([0.8, 0.0, 1.0, 0.1]), GRID).unflatten(-1, (GRID, GRID))
    assert top_right[:3, 9:].sum() == pytest.approx(1.0)


def test_perfect_attention_gives_every_box_back() -> None:
    boxes = rendered_boxes(40)
    found = attention_boxes(box_maps(boxes, GRID), GRID)
    by_study = [[box_iou(*pair) for pair in zip(*rows, strict=True)] for rows in zip(found, boxes, strict=True)]
    by_region = torch.tensor(by_study).mean(0)
    assert by_region.mean() > 0.95
    assert by_region.min() > 0.85


def test_a_little_attention_everywhere_moves_no_edge_by_a_patch() -> None:
    boxes = rendered_boxes(10)
    maps = 0.9 * box_maps(boxes, GRID) + 0.1 / GRID**2
    lungs = [REGIONS.index("right lung"), REGIONS.index("left lung")]
    assert (attention_boxes(maps, GRID) - boxes)[:, lungs].abs().max() < 1 / GRID


def test_boxes_are_read_from_the_image_that_is_asked_for() -> None:
    boxes = rendered_boxes(2)
    first, second = box_maps(boxes, GRID)
    both = torch.cat([0.3 * first, 0.7 * second], dim=-1)
    assert torch.equal(attention_boxes(both, GRID), attention_boxes(first, GRID))
    assert torch.equal(attention_boxes(both, GRID, GRID**2), attention_boxes(second, GRID))


def test_boxes_are_never_empty_and_stay_inside() -> None:
    peaks = torch.eye(GRID**2)
    boxes = attention_boxes(torch.cat([peaks, torch.zeros(1, GRID**2)]), GRID)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()
    assert boxes[-1].tolist() == [0.0, 0.0, 1.0, 1.0]
