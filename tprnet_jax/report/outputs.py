"""What can be written of a segmented angiogram, each as the bytes of a file."""

import json
import math
from typing import NamedTuple

import cv2
import numpy as np

from tprnet_jax.data.images import encode_png
from tprnet_jax.report import figures, graph

LEAST_OVERLAY = 512  # Longer side of an overlay, pixels: on less, the outline hides the vessel.


class Segmented(NamedTuple):
    """An image and what was found in it.

    Attributes:
        name: Of the image.
        image: float32 (height, width) in [0, 1].
        mask: bool (height, width).
        probability: float32 (height, width).
        spacing: Millimetres between its rows and columns, if known.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray
    probability: np.ndarray
    spacing: tuple[float, float] | None = None


def mask(found: Segmented) -> bytes:
    """PNG: 255 in the vessels, 0 elsewhere."""
    return encode_png(found.mask.astype(np.uint8) * 255)


def probability(found: Segmented) -> bytes:
    """16-bit PNG: 0 to 65535 for 0 to 1."""
    return encode_png(np.rint(found.probability * 65535).astype(np.uint16))


def overlay(found: Segmented) -> bytes:
    """PNG: the vessels tinted and outlined; a small image is enlarged, each pixel to a square."""
    return encode_png(drawn(found.image, found.mask))


def drawn(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The overlay as RGB, uint8."""
    factor = math.ceil(LEAST_OVERLAY / max(image.shape))
    enlarged = (x.repeat(factor, axis=0).repeat(factor, axis=1) for x in (image, mask))
    return figures.overlay(*enlarged)


def tree(found: Segmented) -> bytes:
    """JSON: the vessel tree as a graph, see `graph.vessel_tree`."""
    return _json(graph.vessel_tree(found.mask, found.spacing))


def contours(found: Segmented) -> bytes:
    """COCO JSON, an annotation for each connected vessel.

    It is a polygon through the centres of the vessel's outer pixels, which `arcade.draw_mask` fills
    to the very mask; or, around holes, for which polygons have no words, COCO's run lengths.
    """
    height, width = found.mask.shape
    image = {"id": 1, "file_name": found.name, "height": height, "width": width}
    return _json(
        {
            "images": [image],
            "categories": [{"id": 1, "name": "coronary artery"}],
            "annotations": _annotations(found.mask),
        }
    )


def _annotations(mask: np.ndarray) -> list[dict]:
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    return [
        {
            "id": label,
            "image_id": 1,
            "category_id": 1,
            "area": int(boxes[label, cv2.CC_STAT_AREA]),
            "bbox": boxes[label, : cv2.CC_STAT_AREA].tolist(),
            **_outline(labels == label),
        }
        for label in range(1, count)
    ]


def _outline(vessel: np.ndarray) -> dict:
    found = cv2.findContours(vessel.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]
    if len(found) > 1:
        return {"iscrowd": 1, "segmentation": _run_lengths(vessel)}
    points = found[0].reshape(-1, 2)
    points = np.resize(points, (max(3, len(points)), 2))  # COCO knows no polygon of fewer.
    return {"iscrowd": 0, "segmentation": [points.ravel().tolist()]}


def _run_lengths(mask: np.ndarray) -> dict:
    """COCO's: numbers of pixels outside and inside in turn, column after column."""
    pixels = np.concatenate([[False], mask.ravel(order="F"), [False]])
    ends = np.flatnonzero(np.diff(pixels))
    counts = np.diff(np.concatenate([[0], ends, [mask.size]]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def _json(document: dict) -> bytes:
    return (json.dumps(document) + "\n").encode()
