"""What the report of a prediction says of each image, gathered while images are segmented."""

import itertools
import json

import numpy as np

from tprnet_jax.report import pictures


class Journal:
    """An entry for each image; several threads may write to it.

    Args:
        files: How many there are.
        budget: Characters of all pictures.
    """

    def __init__(self, files: int, budget: int = pictures.BUDGET):
        self._files, self._entries = files, []
        self._numbers, self._album = itertools.count(), pictures.Album(budget)

    def wants_picture(self) -> bool:
        """Whether a picture of the next image would be kept."""
        return self._album.wants(len(self._entries))

    def enter(
        self,
        file: str,
        place: tuple[int, int],
        image: np.ndarray | None,
        mask: np.ndarray,
        seconds: float | None = None,
        tree: bytes | None = None,
    ) -> None:
        """Notes what was found in an image.

        Args:
            file: It is of.
            place: Its number among the images of the file, from 1, and their number.
            image: Floating point (height, width) in [0, 1]; None if no picture is wanted.
            mask: Boolean (height, width).
            seconds: That it took; None if it was segmented before.
            tree: What `outputs.tree` made of the mask, if it did.
        """
        number, (frame, count) = next(self._numbers), place
        if image is not None and self._album.wants(number):
            many = max(self._files, count) > pictures.MANY
            self._album.add(number, pictures.encode(image, {"mask": mask}, many))
        found = {
            "file": file,
            "frame": frame,
            "number": number,
            "size": mask.shape,
            "area": 100 * float(mask.mean()),
            "seconds": seconds,
        }
        self._entries.append(found | _measures(tree))

    @property
    def entries(self) -> list[dict]:
        """What is known of each image, and the pictures that are kept."""
        kept = self._album.pictures
        pictured = {number: {"picture": picture} for number, picture in kept.items()}
        return [entry | pictured.get(entry["number"], {}) for entry in self._entries]


def _measures(tree: bytes | None) -> dict[str, float]:
    """Number of branches, and their length in pixels and, if it is known, in millimetres."""
    if tree is None:
        return {}
    edges = json.loads(tree)["edges"]
    units = [unit for unit in ("length", "length_mm") if all(unit in edge for edge in edges)]
    return {"branches": len(edges)} | {u: sum(edge[u] for edge in edges) for u in units}
