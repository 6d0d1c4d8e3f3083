"""Coronary trees for phantoms: where vessels lie, and how wide they are.

A tree lies on a plane of 512 x 512: positions are (row, column) in units of a pixel at 512 px.
"""

import math
from typing import NamedTuple

import numpy as np

PLANE = 512
# Two units is half a pixel at 128 px: a tube one pixel wide is still an 8-connected set of pixels.
MIN_RADIUS = 2.0


class Segment(NamedTuple):
    """A vessel between two bifurcations, or between one and the vessel's tip.

    Attributes:
        points: (n, 2) centreline as (row, column) on the plane.
        radii: (n,) lumen radius at each point.
        parent: Position of the parent segment in the tree, -1 for the trunk.
    """

    points: np.ndarray
    radii: np.ndarray
    parent: int


class _Fork(NamedTuple):
    """A bifurcation to come."""

    at: int  # arc length from the vessel's origin
    share: float  # part of the flow that stays in the vessel
    side: int  # of the branch: 1 clockwise on the picture, -1 anticlockwise
    swing: float  # part of the branching angle that the branch turns back by its tip
    slenderness: float  # length of the branch over its radius


class _Course(NamedTuple):
    """A vessel from its origin to its tip, before it is cut at its bifurcations."""

    origin: np.ndarray  # (row, column)
    heading: float  # radians at the origin; 0 points right, pi / 2 down
    turn: float  # radians turned from origin to tip
    length: float
    radius: float  # at the origin
    fork: _Fork  # the first


def grow_tree(rng: np.random.Generator) -> list[Segment]:
    """Grows a left or right coronary tree, parents before children, the trunk first.

    At every bifurcation the radii follow Murray's law, r0^3 = r1^3 + r2^3 (Murray 1926), and the
    side branch leaves at about the angle that the same principle of least work gives.
    """
    course = _left_course(rng) if rng.random() < 0.65 else _right_course(rng)
    segments = []
    _grow(rng, segments, course, parent=-1)
    return _narrow(rng, _fit(rng, segments))


def _left_course(rng) -> _Course:
    """Left main and anterior descending artery; the circumflex is the first branch."""
    circumflex = _Fork(
        at=round(rng.uniform(35, 65)),
        share=rng.uniform(0.48, 0.62),
        side=1,
        swing=rng.uniform(-0.6, 0.1),
        slenderness=rng.uniform(36, 60),
    )
    return _Course(
        origin=np.zeros(2),
        heading=np.radians(rng.uniform(-35, 25)),
        turn=np.radians(rng.uniform(10, 90)),
        length=rng.uniform(340, 460),
        radius=rng.uniform(6.4, 10.0),
        fork=circumflex,
    )


def _right_course(rng) -> _Course:
    """Right coronary artery: a C from the ostium leftwards, down and back to the right."""
    return _Course(
        origin=np.zeros(2),
        heading=np.radians(rng.uniform(160, 210)),
        turn=-np.radians(rng.uniform(150, 225)),
        length=rng.uniform(480, 650),
        radius=rng.uniform(6.0, 9.6),
        fork=_next_fork(rng, 0, rng.choice([-1, 1])),
    )


def _next_fork(rng, after: int, side: int) -> _Fork:
    return _Fork(
        at=after + round(rng.uniform(55, 215)),
        share=rng.uniform(0.65, 0.92),
        side=side,
        swing=rng.uniform(0, 1),
        slenderness=rng.uniform(14, 42),
    )


def _grow(rng, segments: list[Segment], course: _Course, parent: int) -> None:
    """Cuts a course into segments at its bifurcations and grows the branches there."""
    path, heading = _trace(rng, course)
    reach, radius, fork = 0, course.radius, course.fork
    while True:
        tip = radius * math.exp(-(fork.at - reach) / 1500)
        least = (1.35 * MIN_RADIUS / tip) ** 3  # share of the flow that a visible branch needs
        if fork.at > len(path) - 30 or least > 0.45:
            end = max(MIN_RADIUS, radius * math.exp(-(len(path) - reach) / 350))
            segments.append(_segment(path[reach:], radius, end, parent))
            return
        segments.append(_segment(path[reach : fork.at + 1], radius, tip, parent))
        share = min(fork.share, 1 - least)
        parent, reach, radius = len(segments) - 1, fork.at, tip * share ** (1 / 3)
        side = tip * (1 - share) ** (1 / 3)
        branch = _branch(rng, fork, path[reach], heading[reach], radius, side)
        _grow(rng, segments, branch, parent)
        fork = _next_fork(rng, reach, fork.side if rng.random() < 0.3 else -fork.side)


def _trace(rng, course: _Course) -> tuple[np.ndarray, np.ndarray]:
    """Path (n, 2) and heading (n,) of a course at unit steps: a steady turn plus slow waves."""
    s = np.arange(course.length)
    wave = np.zeros_like(s)
    kinks = rng.uniform(0.4, 1.6)
    for period in rng.uniform((120, 55, 28), (240, 110, 50)):
        phase = rng.uniform(0, 2 * np.pi)
        sway = rng.uniform(0.6, 1.4) * kinks * 0.0032 * period**0.85
        wave += sway * (np.sin(2 * np.pi * s / period + phase) - np.sin(phase))
    heading = course.heading + course.turn * s / course.length + wave
    steps = np.stack([np.sin(heading), np.cos(heading)], axis=1)
    return course.origin + np.cumsum(steps, axis=0) - steps[0], heading


def _branch(rng, fork: _Fork, origin, heading: float, main: float, side: float) -> _Course:
    """The side branch of a fork; projection makes Murray's angle look narrower."""
    angle = fork.side * murray_angle(main, side) * rng.uniform(0.55, 0.95)
    return _Course(
        origin=origin,
        heading=heading + angle,
        turn=-angle * fork.swing,
        length=side * fork.slenderness,
        radius=side,
        fork=_next_fork(rng, 0, rng.choice([-1, 1])),
    )


def murray_angle(r1: float, r2: float) -> float:
    """Angle (radians) between the two branches of a bifurcation that needs the least work.

    Murray 1926, "The physiological principle of minimum work applied to the angle of branching of
    arteries": cos(angle) = (r0^4 - r1^4 - r2^4) / (2 r1^2 r2^2), with r0^3 = r1^3 + r2^3.
    """
    r0 = (r1**3 + r2**3) ** (1 / 3)
    return math.acos((r0**4 - r1**4 - r2**4) / (2 * r1**2 * r2**2))


def _segment(path: np.ndarray, radius: float, end: float, parent: int) -> Segment:
    """A segment along a path of unit steps, tapering from `radius` to `end`."""
    knots = np.linspace(0, len(path) - 1, max(2, len(path) // 6)).round().astype(int)
    return Segment(path[knots], np.linspace(radius, end, len(knots)), parent)


def _fit(rng, segments: list[Segment]) -> list[Segment]:
    """Stretches and moves a tree to a bounding box like those of ARCADE's masks.

    The two axes stretch differently, as foreshortening does; radii stay, and with them Murray's
    law.
    """
    points = np.concatenate([segment.points for segment in segments])
    low, extent = points.min(axis=0), np.ptp(points, axis=0)
    goal = rng.triangular(180, 300, 480, size=2)
    stretch = np.clip(goal / extent, 0.65, 1.5)
    stretch = np.minimum(stretch, 450 / extent)
    gap = PLANE - extent * stretch
    origin = gap * rng.uniform(0.3, 0.7, size=2)
    return [s._replace(points=(s.points - low) * stretch + origin) for s in segments]


def _narrow(rng, segments: list[Segment]) -> list[Segment]:
    """Puts a focal stenosis inside some of the wider segments, away from their ends."""
    return [
        _stenose(rng, s) if s.radii[-1] > 3 and len(s.radii) > 8 and rng.random() < 0.1 else s
        for s in segments
    ]


def _stenose(rng, segment: Segment) -> Segment:
    """Narrows the diameter by 30 to 60 % over six points; the ends keep Murray's radii."""
    dip = np.zeros(len(segment.radii))
    start = rng.integers(1, len(dip) - 6)
    dip[start : start + 6] = rng.uniform(0.3, 0.6) * np.hanning(8)[1:-1]
    return segment._replace(radii=np.maximum(segment.radii * (1 - dip), MIN_RADIUS))


def lay_catheter(rng: np.random.Generator, trunk: Segment) -> Segment:
    """A catheter of constant radius from the image's border to the trunk's ostium."""
    ostium = trunk.points[0]
    ahead = trunk.points[1] - ostium
    ahead = ahead / np.linalg.norm(ahead)
    entry = np.array([-8.0, np.clip(ostium[1] + rng.normal(0, 60), 10, PLANE - 10)])
    if ostium[1] < 200 and rng.random() < 0.5:
        entry = np.array([ostium[0] - rng.uniform(0, 0.8) * ostium[0], -8.0])
    bow = np.linalg.norm(ostium - entry)
    inward = np.array([1.0, 0.0]) if entry[0] < 0 else np.array([0.3, 1.0])
    handles = [
        entry,
        entry + rng.uniform(0.4, 0.6) * bow * inward,
        ostium - rng.uniform(0.2, 0.5) * bow * ahead,
        ostium + 6 * ahead,
    ]
    t = np.linspace(0, 1, 60)[:, None]
    weights = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]
    points = sum(weight * handle for weight, handle in zip(weights, handles, strict=True))
    return Segment(points, np.full(60, rng.uniform(2.9, 4.0)), parent=-1)
