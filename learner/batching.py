"""How sequences are laid into micro-batches: length-sorted, under a token budget, the same number for every rank.

Contract: pure and deterministic. Every rank computes the whole plan and takes its column, so that collective calls
line up; the plan never changes the gradient, because denominators are global.
"""

from __future__ import annotations

from collections.abc import Sequence

Round = tuple[tuple[int, ...], ...]


def micro_batch_rounds(lengths: Sequence[int], *, token_budget: int, most: int, world_size: int) -> list[Round]:
    """Lay sequences into rounds; `rounds[k][rank]` are the indices of that rank's k-th micro-batch, ascending.

    `lengths` are the sequences' tokens, prompts included. They are taken longest first, so that the first round shows
    whether the memory is enough and padding stays small. A micro-batch holds as many as fit `token_budget` (padding
    included), and no more than `most`, but at least one. In the last round a rank may have nothing (an empty tuple).
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    rounds: list[Round] = []
    start = 0
    while start < len(order):
        fit = max(1, min(most, token_budget // lengths[order[start]]))
        taken = order[start : start + fit * world_size]
        rounds.append(tuple(tuple(sorted(taken[rank::world_size])) for rank in range(world_size)))
        start += len(taken)
    return rounds


def split_groups(groups: Sequence[str], parts: int) -> list[list[int]]:
    """Split sample indices into at most `parts` mini-batches that keep the samples of one study together.

    Studies are dealt in order of first appearance (study k goes to part k modulo `parts`), so that the strata of the
    sampler are spread over all parts. Parts without a study are left out.
    """
    number = {name: k for k, name in enumerate(dict.fromkeys(groups))}
    split: list[list[int]] = [[] for _ in range(parts)]
    for index, name in enumerate(groups):
        split[number[name] % parts].append(index)
    return [part for part in split if part]
