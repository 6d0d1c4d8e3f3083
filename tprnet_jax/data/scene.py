"""Synthetic X-ray coronary angiograms with exact vessel masks: anatomy, physics and drawing.

A scene lives on a 512 x 512 plane, whatever the size asked for: positions are (row, column) in
units of a pixel at 512 px, pixel (i, j) covers [i, i + 1) x [j, j + 1), its centre is at + 0.5.
"""

import math
from typing import NamedTuple

import cv2
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


def draw(seed: int, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws phantom number `index` of a seed; a pure function of its arguments.

    Sizes that divide 512 show one scene, noise included: the image is the mean over blocks of the
    512 px image. The mask holds exactly the pixels whose centre lies inside a drawn vessel.

    Args:
        seed: Of the set, at least 0.
        index: Of the phantom in the set, at least 0.
        size: Side in pixels.

    Returns:
        image: (size, size) uint8.
        mask: (size, size) uint8, 255 on vessels and 0 elsewhere.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    tree = grow_tree(rng)
    catheter = lay_catheter(rng, tree[0])
    fine = size * math.ceil(PLANE / size)
    exposure = np.clip(_expose(rng, tree, catheter, fine), 0, 255)  # the detector saturates
    image = cv2.resize(exposure, (size, size), interpolation=cv2.INTER_AREA)
    mask = np.where(project(tree, size) > 0, 255, 0).astype(np.uint8)
    return np.rint(image).astype(np.uint8), mask


# ---- Anatomy -------------------------------------------------------------------------------------


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


# ---- Projection ----------------------------------------------------------------------------------


def project(tree: list[Segment], size: int) -> np.ndarray:
    """Length of each pixel's ray inside the vessels: (size, size) float64 in pixels.

    Crossing vessels add up. Where a segment leaves its parent the lumens are one: within two of
    its diameters of the joint the longer chord counts, and by four diameters both count.
    """
    scale = size / PLANE
    total = np.zeros((size, size))
    for segment in tree:
        window, chord = tube(segment.points * scale, segment.radii * scale, size)
        present = total[window]
        joint = segment.points[0] * scale
        rows, columns = (np.arange(part.start, part.stop) + 0.5 for part in window)
        away = np.hypot(rows[:, None] - joint[0], columns - joint[1])
        shared = np.clip(2 - away / (4 * segment.radii[0] * scale), 0, 1)
        total[window] = present + chord - shared * np.minimum(present, chord)
    return total


def tube(
    points: np.ndarray, radii: np.ndarray, size: int
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Chord lengths 2 sqrt(r^2 - d^2) of a round tube with round ends, at the pixel centres.

    d is the distance to the centreline's nearest point, r the radius there, linear between points.

    Args:
        points: (n, 2) centreline as (row, column) in pixels.
        radii: (n,) in pixels.
        size: Side of the image.

    Returns:
        The tube's window in the image, and the chord lengths in it (height, width); 0 outside.
    """
    low = np.clip(np.floor((points - radii[:, None]).min(axis=0)), 0, size).astype(int)
    high = np.clip(np.ceil((points + radii[:, None]).max(axis=0)), 0, size).astype(int)
    chord = np.zeros(np.maximum(high - low, 0))
    cells, values = _piece_chords(points - low, radii)
    inside = ((cells >= 0) & (cells < np.array(chord.shape))).all(axis=-1) & (values > 0)
    np.maximum.at(chord, tuple(cells[inside].T), values[inside])
    return (slice(low[0], low[0] + chord.shape[0]), slice(low[1], low[1] + chord.shape[1])), chord


def _piece_chords(points: np.ndarray, radii: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (pieces, side, side, 2) near each straight piece of a tube, and their chords."""
    start, step = points[:-1], np.diff(points, axis=0)
    widest = radii.max()
    side = math.ceil(np.abs(step).max() + 2 * widest) + 1
    corner = np.floor(np.minimum(start, points[1:]) - widest).astype(int)
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1)
    cells = corner[:, None, None] + grid
    ray = cells + 0.5 - start[:, None, None]
    squared = np.maximum((step**2).sum(axis=1), 1e-12)[:, None, None]
    along = np.clip(np.einsum("kijc,kc->kij", ray, step) / squared, 0, 1)
    distance = ((ray - along[..., None] * step[:, None, None]) ** 2).sum(axis=-1)
    radius = radii[:-1, None, None] + along * np.diff(radii)[:, None, None]
    return cells, 2 * np.sqrt(np.maximum(radius**2 - distance, 0))


# ---- Image formation -----------------------------------------------------------------------------


def _expose(rng, tree: list[Segment], catheter: Segment, size: int) -> np.ndarray:
    """The detector's image (size, size) float32 in grey values, by Beer-Lambert's law."""
    unit = size / PLANE
    depth = cv2.resize(_body(rng), (size, size), interpolation=cv2.INTER_LINEAR)
    light = np.exp(-depth)
    light *= rng.uniform(125, 160) / light.mean()
    opaque = rng.uniform(0.028, 0.044) * _fading(rng, tree[0].points[0], size) * project(tree, size)
    opaque += rng.uniform(0.03, 0.05) * project([catheter], size)
    light *= np.exp(-opaque / unit).astype(np.float32)
    light = cv2.GaussianBlur(light, (0, 0), rng.uniform(0.8, 1.2) * unit)
    light *= _collimator(rng, tree, size)
    return light + _quantum_noise(rng, light, unit)


def _fading(rng, ostium: np.ndarray, size: int) -> np.ndarray:
    """Contrast agent thins out with the distance from the ostium: (size, size), 1 there."""
    place = _places(size)
    away = np.hypot(place[:, None] - ostium[0], place - ostium[1])
    return np.exp(-away / rng.uniform(600, 1500))


def _quantum_noise(rng, light: np.ndarray, unit: float) -> np.ndarray:
    """Photon noise, its variance proportional to the intensity, a little correlated.

    With hundreds of photons a pixel the normal distribution stands for Poisson's.
    """
    gain = rng.uniform(0.32, 0.52)
    # The last draw of all: its number depends on the size, and no other may depend on that.
    white = rng.standard_normal(light.shape, dtype=np.float32)
    grain = cv2.GaussianBlur(white, (0, 0), 0.6 * unit)
    return gain * np.sqrt(light) * grain / grain.std()


def _collimator(rng, tree: list[Segment], size: int) -> np.ndarray:
    """Transmission (size, size) of the collimator's blades, which never cover a vessel."""
    points = np.concatenate([segment.points for segment in tree])
    gaps = np.concatenate([points.min(axis=0), PLANE - points.max(axis=0)]) - 14
    kind = rng.choice(3, 4, p=[0.5, 0.4, 0.1])  # a side is open, has a rim, or a broad blade
    blades = np.choose(kind, [np.full(4, -20.0), rng.uniform(-2, 8, 4), rng.uniform(8, 40, 4)])
    blades = np.minimum(blades, gaps)
    place = _places(size)
    width = rng.uniform(2, 5)
    rows, columns = (
        _edge((place - blades[i]) / width) * _edge((PLANE - place - blades[i + 2]) / width)
        for i in range(2)
    )
    return (rows[:, None] * columns).astype(np.float32)


_BODY = 256  # anatomy is soft: half the plane's resolution holds it


def _body(rng) -> np.ndarray:
    """Optical depth of the chest without contrast: (256, 256) float32."""
    rows, columns = _places(_BODY)[:, None], _places(_BODY)[None]
    depth = _texture(rng) + _heart(rng, rows, columns)
    for shadow, chance in ((_spine, 0.5), (_diaphragm, 0.6), (_ribs, 0.8)):
        if rng.random() < chance:
            depth += shadow(rng, rows, columns)
    return depth.astype(np.float32)


def _texture(rng) -> np.ndarray:
    """Tissue: smooth fields from the chest's width down, and the filaments of lung markings."""
    field = sum(
        amplitude * _noise(rng, cells)
        for cells, amplitude in ((3, 0.1), (6, 0.025), (20, 0.008), (50, 0.008), (110, 0.01))
    )
    for cells in (9, 16, 26):
        # The zero crossings of a smooth field are curves: thin and dark, as small vessels are.
        filament = np.exp(-((_noise(rng, cells) / (0.011 * cells)) ** 2))
        field += rng.uniform(0.02, 0.07) * filament * _edge(2 * _noise(rng, 8))
    return field


def _noise(rng, cells: int) -> np.ndarray:
    """A smooth random field (256, 256), its grain a `cells`th of the image."""
    coarse = rng.standard_normal((cells, cells))
    return cv2.resize(coarse, (_BODY, _BODY), interpolation=cv2.INTER_CUBIC)


def _heart(rng, rows, columns) -> np.ndarray:
    """The heart's soft, lobed shadow against the lungs."""
    y, x = rows - rng.uniform(280, 430), columns - rng.uniform(80, 240)
    angle = np.arctan2(y, x)
    lobes = sum(rng.normal(0, 0.03) * np.cos(k * angle + rng.uniform(0, 6.3)) for k in (2, 3, 4))
    inside = 1 + lobes - np.hypot(y / rng.uniform(240, 360), x / rng.uniform(220, 330))
    return rng.uniform(0.15, 0.5) * _edge(inside / rng.uniform(0.015, 0.08))


def _diaphragm(rng, rows, columns) -> np.ndarray:
    """The dome of the diaphragm, sharp-edged, at the bottom."""
    radius = rng.uniform(280, 700)
    centre = rng.uniform(320, 470) + radius, rng.uniform(0, PLANE)
    inside = radius - np.hypot(rows - centre[0], columns - centre[1])
    return rng.uniform(0.12, 0.3) * _edge(inside / rng.uniform(1.5, 5))


def _spine(rng, rows, columns) -> np.ndarray:
    """A column of vertebrae: waisted blocks with dense endplates, lighter discs between."""
    height = rng.uniform(75, 105)
    tilt = rng.uniform(-0.15, 0.15)
    along = rows + tilt * columns + rng.uniform(0, height)
    across = columns - tilt * rows - rng.uniform(-40, 280)
    place = np.abs(along % height - height / 2)  # 0 within a disc, height / 2 within a vertebra
    waist = rng.uniform(2, 5) * np.cos(2 * np.pi * place / height)
    band = _edge((rng.uniform(50, 85) + waist - np.abs(across)) / rng.uniform(4, 16))
    disc = _edge((rng.uniform(5, 9) - place) / 2)
    plate = np.exp(-(((place - 9) / 2.5) ** 2))
    bone = rng.uniform(0.12, 0.35) - rng.uniform(0.01, 0.05) * disc
    return band * (bone + rng.uniform(0.01, 0.06) * plate)


def _ribs(rng, rows, columns) -> np.ndarray:
    """Ribs: parallel bowed bands whose cortical edges are denser than their inside."""
    bow = rng.uniform(350, 800)
    centre = rng.uniform(0.5, 1.0) * bow + 200, rng.uniform(-0.4, 0.6) * bow
    spacing, half_width = rng.uniform(75, 120), rng.uniform(11, 17)
    ring = np.hypot(rows - centre[0], columns - centre[1]) + rng.uniform(0, spacing)
    off = np.abs(ring % spacing - spacing / 2)
    cortex = np.exp(-(((off - half_width) / 2.2) ** 2))
    rib = 0.6 * _edge((half_width - off) / 2) + cortex
    return rng.uniform(0.03, 0.08) * rib * _edge((columns - rng.uniform(100, 350)) / 30)


def _places(size: int) -> np.ndarray:
    """Pixel centres (size,) on the plane."""
    return (np.arange(size) + 0.5) * (PLANE / size)


def _edge(signed: np.ndarray) -> np.ndarray:
    """A soft step from 0 (negative) to 1 (positive)."""
    return 0.5 + 0.5 * np.tanh(signed)
