"""Which branches a mask has and where they meet: the graph of its skeleton.

Bumps of the wall lower than about a vessel's radius are no branches, and junctions whose discs
overlap are one. Thinning is that of Zhang and Suen, 1984, doi:10.1145/357994.358023.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
from skimage.morphology import skeletonize

SPUR = 2.0  # Radii up to which an edge that ends freely is a bump of the wall, not a branch.


class Edge(NamedTuple):
    """A branch of the skeleton: its two nodes, and its pixels (n, 2) from one to the other."""

    nodes: tuple[int, int]
    chain: np.ndarray


def skeleton_graph(mask: np.ndarray, room: np.ndarray) -> tuple[list[Edge], dict[int, float]]:
    """The branches of a mask, and the room at their nodes.

    Args:
        mask: Boolean (height, width), background at its border.
        room: Float32 (height, width), the distance of each pixel to the background.

    Returns:
        The edges, and of each node the radius of the widest disc there in the mask, pixels.
    """
    edges = _prune(skeletonize(mask), room)
    kinds = kinds_of(edges)
    rooms = {edge.nodes[i]: float(room[tuple(edge.chain[-i])]) for edge in edges for i in (0, 1)}
    names, kept = {node: node for node in rooms}, []
    for edge in sorted(edges, key=lambda edge: len(edge.chain)):
        one, other = (names[node] for node in edge.nodes)
        apart = length(edge.chain) > sum(room[tuple(edge.chain[end])] for end in (0, -1))
        if one == other or apart or "end" in (kinds[node] for node in edge.nodes):
            kept.append(edge)
            continue
        # Junctions whose discs overlap are one. What else joins them becomes a ring at it.
        rooms[one] = max(rooms[one], rooms[other])
        names.update({node: one for node, name in names.items() if name == other})
    edges = [edge._replace(nodes=tuple(names[node] for node in edge.nodes)) for edge in kept]
    return sorted(edges, key=lambda edge: edge.nodes), rooms


def _prune(skeleton: np.ndarray, room: np.ndarray) -> list[Edge]:
    """The edges of a skeleton without the spurs that thinning grows towards uneven walls."""
    widths = _widths(skeleton, room)
    while True:
        edges = _trace(skeleton)
        kinds = kinds_of(edges)
        spurs = []
        for edge in edges:
            tips = [kinds[node] == "end" for node in edge.nodes]
            if any(tips) and length(edge.chain) < SPUR * widths[tuple(edge.chain.T)].max():
                spurs.append(edge.chain[:-1] if tips[0] else edge.chain[1:])
        if not spurs:
            return edges
        skeleton[tuple(np.concatenate(spurs).T)] = False


def _widths(skeleton: np.ndarray, room: np.ndarray) -> np.ndarray:
    """At each pixel the radius of the widest disc around the skeleton that covers it."""
    # At a spur's fork near the wall there is little room, but it lies in its vessel's disc.
    widths = np.zeros_like(room)
    pixels = np.argwhere(skeleton)
    for row, column in pixels[np.argsort(room[skeleton], kind="stable")].tolist():
        radius = float(room[row, column])
        cv2.circle(widths, (column, row), round(radius), radius, cv2.FILLED)
    return widths


def kinds_of(edges: list[Edge]) -> dict[int, str]:
    """Of each node, by the number of edges that end there."""
    degrees = Counter(node for edge in edges for node in edge.nodes)
    names = {1: "end", 2: "loop"}
    return {node: names.get(degree, "junction") for node, degree in sorted(degrees.items())}


def _trace(skeleton: np.ndarray) -> list[Edge]:
    """The edges of a skeleton. Nodes are the places, in reading order, of their pixels."""
    pixels, neighbours = np.argwhere(skeleton), defaultdict(list)
    for one, other in _links(skeleton).tolist():
        neighbours[one].append(other)
        neighbours[other].append(one)
    return [Edge((chain[0], chain[-1]), pixels[chain]) for chain in _chains(neighbours)]


def _links(skeleton: np.ndarray) -> np.ndarray:
    """Neighbouring pixels (links, 2) of a skeleton, by their places in reading order.

    A corner must make no triangle and a square no ring, so diagonal neighbours are linked only
    where no third pixel touches both, and two in a row only where the next row lacks either.
    """
    index = np.cumsum(skeleton).reshape(skeleton.shape) - 1
    rows, columns = np.nonzero(skeleton)
    links = []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        linked = skeleton[rows + down, columns + right]
        if down and right:
            linked &= ~skeleton[rows + down, columns] & ~skeleton[rows, columns + right]
        if right and not down:
            linked &= ~(skeleton[rows + 1, columns] & skeleton[rows + 1, columns + 1])
        neighbours = index[rows + down, columns + right]
        links.append(np.stack([index[rows, columns], neighbours], axis=1)[linked])
    return np.concatenate(links)


def _chains(neighbours: dict[int, list[int]]) -> Iterator[list[int]]:
    """The pixels of each edge in order; uses the neighbours up."""
    nodes = {pixel for pixel, others in neighbours.items() if len(others) != 2}
    # What is left after the edges between nodes are rings, which start and end at any pixel.
    for start in [*sorted(nodes), *sorted(neighbours)]:
        while neighbours[start]:
            nodes.add(start)
            chain = [start]
            while len(chain) == 1 or chain[-1] not in nodes:
                chain.append(neighbours[chain[-1]].pop(0))
                neighbours[chain[-1]].remove(chain[-2])
            yield chain


def length(line: np.ndarray) -> float:
    """Of a line (n, 2), in its unit."""
    return float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())
