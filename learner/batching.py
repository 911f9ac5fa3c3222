"""How sequences are laid into micro-batches under a token budget, the same number for every rank: length-sorted, or,
where prompts are shared, by study.

Contract: pure and deterministic. Every rank computes the whole plan and takes its column, so that collective calls
line up; the plan never changes the gradient, because denominators are global.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

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


def study_rounds(
    studies: Sequence[str],
    prompts: Sequence[int],
    lengths: Sequence[int],
    *,
    token_budget: int,
    most: int,
    world_size: int,
) -> list[Round]:
    """As `micro_batch_rounds`, for sequences that are computed without padding and with their study's prompt once.

    Sequence i has `prompts[i]` and then `lengths[i]` tokens; those of a study stand in a row. A study is divided only
    where it is more than a micro-batch, or than a rank's even share. Micro-batches are as few as the budget allows and
    about equally large, the largest first; a round's last ranks may have nothing.
    """
    together = max(1, min(most, -(-len(studies) // world_size)))
    pieces = list(_pieces(studies, prompts, lengths, token_budget, together))
    costs = [prompts[piece[0]] + sum(lengths[i] for i in piece) for piece in pieces]
    largest_first = sorted(range(len(pieces)), key=lambda k: (-costs[k], k))
    bins = world_size
    while True:
        batches: list[list[int]] = [[] for _ in range(bins)]
        loads = [0] * bins
        for k in largest_first:
            b = min(range(bins), key=lambda b: (loads[b], b))
            batches[b].extend(pieces[k])
            loads[b] += costs[k]
        # A micro-batch with more than its budget has more than one piece, or that piece is a single sequence.
        if bins >= len(pieces) or (max(loads) <= token_budget and max(map(len, batches)) <= most):
            break
        bins += world_size
    order = sorted(range(bins), key=lambda b: (-loads[b], b))
    filled = [tuple(sorted(batches[b])) for b in order]
    rounds = [tuple(filled[start : start + world_size]) for start in range(0, bins, world_size)]
    return [shares for shares in rounds if shares[0]]


def _pieces(
    studies: Sequence[str], prompts: Sequence[int], lengths: Sequence[int], token_budget: int, together: int
) -> Iterator[list[int]]:
    """Sequences that share a prompt: at most `together`, within the budget if there is more than one."""
    for _, members in groupby(range(len(studies)), key=lambda i: studies[i]):
        piece: list[int] = []
        cost = 0
        for i in members:
            if piece and (len(piece) == together or cost + lengths[i] > token_budget):
                yield piece
                piece = []
            cost = (cost if piece else prompts[i]) + lengths[i]
            piece.append(i)
        yield piece


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
