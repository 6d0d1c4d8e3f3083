"""Synthetic X-ray coronary angiograms with exact vessel masks: anatomy, physics and drawing.

A scene lives on a 512 x 512 plane, whatever the size asked for: positions are (row, column) in
units of a pixel at 512 px, pixel (i, j) covers [i, i + 1) x [j, j + 1), its centre is at + 0.5.
"""

import math

import cv2
import numpy as np

from tprnet_jax.data.anatomy import PLANE, Segment, grow_tree, lay_catheter


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
