"""The region feature extractor of LM-RRG: from patch features to one token a region, for a language model to read.

Contract: `RegionExtractor` reads any number of views and always gives the same number of tokens. The region queries
are the language model's own encodings of the region descriptions; they lie in the buffer `region_queries`, so that
they travel with the weights.

The way of a region: its query attends to the patches (cross-attention), then to the other regions (self-attention),
then a feed-forward layer, as often as there are layers. Its state then asks for the patches once more, by one map that
says where the region lies: boxes supervise it where there are some, and `rrg.model.boxes` reads boxes from it. What is
seen there joins the state. The heads of the layers stay free of the boxes: a nodule is a small part of its lung.

From the state come the significance (is anything abnormal here), the findings, and a token of the language model's
width. The token's content is weighted by the significance, so that medically significant regions weigh more
(`gated_tokens`), and it carries the embeddings of the region's findings weighted by their probabilities: the words that
a report is made of are easier to read off than off visual features alone.

Ablations by `ExtractorShape`: `regions == 0` leaves the global tokens and the study's findings, `global_tokens == 0`
the regions; without `gate` all regions weigh the same. `configs.check` refuses to do without both kinds of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rrg.model.features import VIEW_CODES, FeatureBatch

# Logit at which the heads start: most findings are absent from most regions.
_RARE: Final = -4.0


@dataclass(frozen=True)
class ExtractorShape:
    """Sizes of an extractor: all that is needed to build one before its weights are loaded.

    `gate`: whether the content of a region's token is weighted by the region's significance.
    """

    patch_channels: int
    grid: int
    size: int
    heads: int
    layers: int
    dropout: float
    global_tokens: int
    regions: int
    findings: int
    hidden: int
    gate: bool = True


@dataclass(frozen=True)
class RegionOutput:
    """What the extractor sees; R regions, G global tokens, F findings, H the language model's width, N patches.

    `significance` [B, R], `findings` [B, R, F] and `study_findings` [B, F] are logits. `base` and `content`
    [B, R, H] make up the region tokens, `global_tokens` is [B, G, H]. `attention` [B, R, N] is where a region lies: it
    sums to one over the patches. `weight` [B, R] is what the content counts: the significance as a probability, or 1
    without a gate.
    """

    significance: Tensor
    findings: Tensor
    study_findings: Tensor
    base: Tensor
    content: Tensor
    global_tokens: Tensor
    attention: Tensor
    weight: Tensor

    def gated_tokens(self) -> Tensor:
        """Region tokens [B, R, H]: what a region is, plus its content as far as it is significant."""
        return self.base + self.weight[..., None] * self.content


class Attention(nn.Module):
    """Multi-head attention of one sequence to another, or to itself."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.out = nn.Linear(size, size)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """`x` [B, Q, D] attends to `context` [B, K, D] where `mask` [B, K]: [B, Q, D]."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(x), self.key(context), self.value(context))
        )
        allowed = None if mask is None else mask[:, None, None, :]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Where(nn.Module):
    """One map a region over the patches, and what is seen there; boxes supervise the map.

    A patch's score is that of its content, its column and its row: boxes are upright, and most of where a region lies
    is told by its name.
    """

    def __init__(self, size: int, grid: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)
        self.query = nn.Linear(size, size)
        self.across = nn.Linear(size, grid)
        self.down = nn.Linear(size, grid)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        # Maps begin with the place alone, equal for all patients, and take up content as it helps.
        nn.init.zeros_(self.query.weight)

    def forward(self, x: Tensor, patches: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """`x` [B, R, D] and `patches` [B, N, D]: what is seen [B, R, D], and the map [B, R, N]."""
        x = self.norm(x)
        place = (self.down(x)[..., :, None] + self.across(x)[..., None, :]).flatten(-2)
        scores = self.query(x) @ self.key(patches).transpose(-1, -2) / x.shape[-1] ** 0.5
        scores = scores + place.repeat(1, 1, patches.shape[1] // place.shape[-1])
        weights = scores.masked_fill(~mask[:, None, :], -torch.inf).softmax(-1)
        return weights @ self.value(patches), weights


class RegionLayer(nn.Module):
    """Cross-attention to the patches, self-attention among the queries, feed-forward; pre-norm and residual."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.cross_norm, self.self_norm, self.forward_norm = (nn.LayerNorm(size) for _ in range(3))
        self.cross = Attention(size, heads)
        self.among = Attention(size, heads)
        self.feed_forward = nn.Sequential(
            nn.Linear(size, 2 * size), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * size, size)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, patches: Tensor, mask: Tensor) -> Tensor:
        x = x + self.dropout(self.cross(self.cross_norm(x), patches, mask))
        normed = self.self_norm(x)
        x = x + self.dropout(self.among(normed, normed))
        out: Tensor = x + self.dropout(self.feed_forward(self.forward_norm(x)))
        return out


class PatchEncoder(nn.Module):
    """Backbone features to the extractor's width, with position, view, and a look at the neighbouring patches."""

    def __init__(self, shape: ExtractorShape) -> None:
        super().__init__()
        self.grid = shape.grid
        self.norm = nn.LayerNorm(shape.patch_channels)
        self.project = nn.Linear(shape.patch_channels, shape.size)
        self.position = nn.Parameter(torch.randn(shape.grid**2, shape.size) * 0.02)
        self.view = nn.Embedding(len(VIEW_CODES), shape.size)
        self.neighbours = nn.Conv2d(shape.size, shape.size, 3, padding=1, groups=shape.size)
        self.out_norm = nn.LayerNorm(shape.size)

    def forward(self, batch: FeatureBatch) -> Tensor:
        """[B, N, size]."""
        x = self.project(self.norm(batch.values.to(self.norm.weight.dtype))).unflatten(1, (-1, self.grid**2))
        x = (x + self.position).flatten(1, 2) + self.view(batch.views)
        maps = x.unflatten(1, (-1, self.grid, self.grid)).flatten(0, 1).permute(0, 3, 1, 2)
        around = self.neighbours(maps).permute(0, 2, 3, 1).reshape(x.shape)
        normed: Tensor = self.out_norm(x + F.gelu(around))
        return normed


class RegionExtractor(nn.Module):
    def __init__(self, shape: ExtractorShape) -> None:
        super().__init__()
        self.shape = shape
        size, hidden = shape.size, shape.hidden
        self.region_queries: Tensor
        self.register_buffer("region_queries", torch.zeros(shape.regions, hidden))
        self.query_norm = nn.LayerNorm(hidden)
        self.query_project = nn.Linear(hidden, size)
        # An embedding, not a bare parameter: ZeRO 3 gathers the parameters of what is called and returns a tensor.
        start = torch.randn(shape.global_tokens, size) * 0.5
        self.global_queries = nn.Embedding(shape.global_tokens, size, _weight=start)
        self.patches = PatchEncoder(shape)
        self.layers = nn.ModuleList(RegionLayer(size, shape.heads, shape.dropout) for _ in range(shape.layers))
        self.where = Where(size, shape.grid)
        self.norm = nn.LayerNorm(size)
        self.significance = nn.Linear(size, 1)
        self.region_findings = nn.Linear(size, shape.findings)
        self.study_findings = nn.Linear(size, shape.findings)
        self.base = nn.Linear(size, hidden)
        self.content = nn.Linear(size, hidden)
        self.global_content = nn.Linear(size, hidden)
        self.finding_embeddings = nn.Embedding(shape.findings, hidden)
        for head in (self.significance, self.region_findings, self.study_findings):
            nn.init.constant_(head.bias, _RARE)

    def set_token_scale(self, std: float) -> None:
        """Starts visual tokens at the standard deviation of the language model's token embeddings."""
        size = self.shape.size
        for layer in (self.base, self.content, self.global_content):
            nn.init.normal_(layer.weight, std=std / size**0.5)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.finding_embeddings.weight, std=std)

    def forward(self, batch: FeatureBatch) -> RegionOutput:
        patches = self.patches(batch)
        count = self.shape.regions
        asked = self.global_queries(torch.arange(self.shape.global_tokens, device=self.region_queries.device))
        queries = torch.cat([self.query_project(self.query_norm(self.region_queries)), asked])
        x = queries.expand(len(batch), -1, -1)
        for layer in self.layers:
            x = layer(x, patches, batch.mask)
        regions, whole = x[:, :count], x[:, count:]
        seen, attention = self.where(regions, patches, batch.mask)
        regions, whole = self.norm(regions + seen), self.norm(whole)
        findings = self.region_findings(regions)
        # Abnormal is what has any finding, and what looks so.
        significance = self.significance(regions)[..., 0] + findings.logsumexp(-1)
        study_findings = self._study_findings(findings, whole)
        embeddings = self.finding_embeddings(torch.arange(self.shape.findings, device=findings.device))
        return RegionOutput(
            significance=significance,
            findings=findings,
            study_findings=study_findings,
            base=self.base(queries[:count]).expand(len(batch), -1, -1),
            content=self.content(regions) + torch.sigmoid(findings) @ embeddings,
            global_tokens=self.global_content(whole) + (torch.sigmoid(study_findings) @ embeddings)[:, None],
            attention=attention,
            weight=torch.sigmoid(significance) if self.shape.gate else torch.ones_like(significance),
        )

    def _study_findings(self, by_region: Tensor, whole: Tensor) -> Tensor:
        """[B, F]: what the whole image tells, and what any region does. Either may be missing, not both."""
        logits = []
        if self.shape.global_tokens:
            logits.append(self.study_findings(whole.mean(1)))
        if self.shape.regions:
            logits.append(by_region.logsumexp(1))
        return torch.stack(logits).sum(0)
