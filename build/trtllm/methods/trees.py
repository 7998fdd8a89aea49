"""Token trees for Medusa and EAGLE engines: the default ones, what an engine asks of them, and their notation.

A tree is a list of paths from its root; a path names, for each depth, the rank of the proposed token ((0, 1): the
second choice after the first choice). TensorRT-LLM reads it in braces in config.pbtxt.

Example::

    tree = default_tree(4, 63, 63)          # ((0,), (0, 0), (1,), …)
    as_braces(tree)                         # "{0}, {0, 0}, {1}, …"
"""

import heapq
from collections import Counter
from collections.abc import Iterator, Sequence

from build.trtllm.releases import not_in_line
from deployments.findings import Finding
from deployments.speculation import Choices

# The tree of Medusa's authors for Vicuna-7B, which the C++ backend falls back on: 63 nodes, depth 4.
# FasterDecoding/Medusa at 5e98053, medusa/model/medusa_choices.py, `mc_sim_7b_63`; one digit a rank.
_MC_SIM_7B_63 = (
    "0 00 1 01 2 000 10 02 3 03 4 04 20 05 001 5 06 6 07 010 11 7 08 002 30 09 8 9 100 020 12 003 40 21 004 005 "
    "0000 011 006 030 50 13 007 008 009 60 040 14 70 012 200 31 22 80 050 15 101 021 90 060 0001 16 070"
)
MC_SIM_7B_63: Choices = tuple(tuple(int(rank) for rank in path) for path in _MC_SIM_7B_63.split())

# Chance that the token of a rank is the accepted one: the order of magnitude that the Medusa paper's trees imply.
# It shapes default trees of other sizes; a measured profile gives better ones.
_RANK_ACCEPTANCE = (0.6, 0.13, 0.06, 0.035, 0.025, 0.02, 0.015, 0.012, 0.01, 0.008)


def tree_findings(choices: Choices, most_nodes: int) -> Iterator[Finding]:
    """What is wrong with a tree: a path whose beginning is missing or that stands twice, or too many nodes."""
    known = set(choices)
    for path in [path for path, count in Counter(choices).items() if count > 1]:
        yield not_in_line(f"speculation.choices has {list(path)} twice", "each path once")
    if not choices or () in known:
        yield not_in_line("speculation.choices needs paths of at least one rank", "choices: [[0]]")
    for path in choices:
        if len(path) > 1 and path[:-1] not in known:
            yield not_in_line(
                f"speculation.choices has {list(path)} but not {list(path[:-1])}, which leads there",
                f"choices with {list(path[:-1])}",
            )
    if len(choices) > most_nodes:
        yield not_in_line(
            f"speculation.choices has {len(choices)} nodes, and the engine is built for {most_nodes}",
            f"choices of at most {most_nodes} nodes",
        )


def depth(choices: Choices) -> int:
    """Length of the longest path."""
    return max(map(len, choices))


def non_leaves(choices: Choices) -> list[int]:
    """Nodes with children, for each level that has any; level 1 comes first."""
    parents = Counter(len(parent) for parent in {path[:-1] for path in choices} if parent)
    return [parents[level] for level in sorted(parents)]


def default_tree(levels: int, most_nodes: int, most_non_leaves: int) -> Choices:
    """A tree of exactly this depth: Medusa's where it fits, else the likeliest nodes under a fixed rank acceptance.

    Args:
        levels: depth.
        most_nodes: nodes, at most, and no fewer than `levels`.
        most_non_leaves: nodes with children on one level, at most; at least one on each level is drafted even so.
    """
    medusa = MC_SIM_7B_63
    if levels == depth(medusa) and most_nodes >= len(medusa) and most_non_leaves >= max(non_leaves(medusa)):
        return medusa
    return _likeliest(levels, most_nodes, most_non_leaves)


def _likeliest(levels: int, most_nodes: int, most_non_leaves: int) -> Choices:
    chain = [(0,) * level for level in range(1, levels + 1)]
    chosen = set(chain)
    parents = {path[:-1] for path in chain}
    queue: list[tuple[float, tuple[int, ...]]] = []
    for path in [(), *chain]:
        _offer(queue, path, levels)
    while queue and len(chosen) < most_nodes:
        _, path = heapq.heappop(queue)
        parent = path[:-1]
        if path in chosen or not _room(parent, parents, most_non_leaves):
            continue
        chosen.add(path)
        parents.add(parent)
        _offer(queue, path, levels)
    return tuple(sorted(chosen, key=lambda path: (len(path), path)))


def _room(parent: tuple[int, ...], parents: set[tuple[int, ...]], most_non_leaves: int) -> bool:
    """Whether a node may have (more) children."""
    if not parent or parent in parents:
        return True
    return sum(len(other) == len(parent) for other in parents) < most_non_leaves


def _offer(queue: list[tuple[float, tuple[int, ...]]], path: tuple[int, ...], levels: int) -> None:
    """Put the children of a node in the queue, the likeliest first."""
    if len(path) == levels:
        return
    for rank in range(len(_RANK_ACCEPTANCE)):
        child = (*path, rank)
        heapq.heappush(queue, (-_likelihood(child), child))


def _likelihood(path: Sequence[int]) -> float:
    product = 1.0
    for rank in path:
        product *= _RANK_ACCEPTANCE[rank]
    return product


def as_braces(choices: Choices) -> str:
    """Braces, as the parameters `medusa_choices` and `eagle_choices` of config.pbtxt are read."""
    return ", ".join("{" + ", ".join(map(str, path)) + "}" for path in choices)
