"""ARCADE, syntax task: X-ray coronary angiograms with vessel masks, as a TFDS data set.

The official layout is `syntax/{train,val,test}/images/N.png` with COCO annotations in
`syntax/{train,val,test}/annotations/{train,val,test}.json`.
"""

import contextlib
import hashlib
import json
import os
import reprlib
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import cv2
import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import logging
from tensorflow_datasets.core.download import downloader

from tprnet_jax.data import images, records
from tprnet_jax.runtime.errors import UserError

URL = "https://zenodo.org/records/10390295/files/arcade.zip"
SHA256 = "a396cdea7c92c55dc97bbf3dd8e3df517d76872b289a8bcb45513bdb3350837f"

_FOLDER_OF_SPLIT = {"train": "train", "validation": "val", "test": "test"}
_BY_HAND = (
    "download it by hand, unpack it and set config.data.source to the folder that contains syntax/"
)


class Sample(NamedTuple):
    """One annotated image: its file, its size in pixels and its polygons, (points, 2) as x, y."""

    id: int | str
    path: Path
    height: int
    width: int
    polygons: list[np.ndarray]


class Arcade(tfds.core.GeneratorBasedBuilder):
    """ARCADE as a TFDS builder; `prepare` makes one that is ready to read.

    Features: `image` and `mask` (0 or 255), both uint8 (height, width, 1), and `name`, the image's
    file name as bytes. The examples of a split are in the order of its annotation file.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, samples: dict[str, list[Sample]] | None = None, **kwargs):
        """Takes what is to be written, by split; a builder that only reads needs none."""
        self._samples = samples or {}
        with records.quiet():
            super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="X-ray coronary angiograms with masks of the vessels (ARCADE, syntax task)",
            features=records.features(),
            homepage="https://doi.org/10.1038/s41597-023-02871-z",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # `prepare` has downloaded what there is to download
        return {split: self._generate_examples(each) for split, each in self._samples.items()}

    def _generate_examples(self, samples: list[Sample]) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, sample in enumerate(_progress(samples, "Writing images")):
            image = np.rint(images.read_grey(sample.path) * 255).astype(np.uint8)
            mask = draw_mask(sample.polygons, sample.height, sample.width)
            yield key, records.example(image, mask, sample.path.name)


def prepare(source: str, data_dir: str | None = None) -> Arcade:
    """Checks ARCADE, writes it as a TFDS data set unless that is done, and opens it.

    A changed local source (annotations; names, sizes or times of images) is a new data set.

    Args:
        source: The local folder that contains `syntax/`, or "" to download the official archive.
        data_dir: Where TFDS keeps its data sets; None for its own default.

    Returns:
        A builder that is ready for `as_data_source(split)`, with those of the splits `train`,
        `validation` and `test` that the source has.

    Raises:
        UserError: The source is not what the official layout promises, the archive cannot be
          downloaded, or the data set cannot be written.
    """
    if source:
        folders = _split_folders(Path(source).expanduser())
        builder = _builder(f"local_{_digest(folders.values())}", data_dir)
        return builder if records.is_written(builder) else _write(builder, folders)
    builder = _builder("official", data_dir)
    if records.is_written(builder):
        return builder
    with _scratch_folder(builder) as scratch:
        return _write(builder, _split_folders(_download(scratch)))


def is_downloaded(data_dir: str | None = None) -> bool:
    """Whether `prepare` finds the official archive's data without a download."""
    return records.is_written(_builder("official", data_dir))


def draw_mask(polygons: Iterable[Sequence], height: int, width: int) -> np.ndarray:
    """Draws the union of polygons as the published masks were drawn.

    Each polygon is filled by OpenCV's `fillPoly` with its coordinates truncated to integers, which
    reproduces the bounding boxes that the authors of TPRNet published.

    Args:
        polygons: Each (points, 2) or flat (2 * points,), as x, y in pixels.
        height: Of the image.
        width: Of the image.

    Returns:
        uint8 (height, width), 255 in the vessels and 0 elsewhere.
    """
    mask = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        # One call for all would leave their overlaps empty (even-odd rule).
        cv2.fillPoly(mask, [np.reshape(polygon, (-1, 2)).astype(np.int32)], 255)
    return mask


def _builder(
    config: str, data_dir: str | None, samples: dict[str, list[Sample]] | None = None
) -> Arcade:
    """Returns a builder that reads and writes without TensorFlow."""
    return Arcade(
        samples=samples,
        config=tfds.core.BuilderConfig(name=config),
        data_dir=data_dir,
        file_format="array_record",
    )


def _write(reader: Arcade, folders: dict[str, Path]) -> Arcade:
    """Checks all splits, only then writes them where `reader` expects them, and opens them."""
    samples = {split: _read_split(folder) for split, folder in folders.items()}
    for split, folder in folders.items():
        _check_images(samples[split], folder)
        _warn_of_unnamed(samples[split], folder)
    config, data_dir = reader.builder_config.name, reader.data_dir_root
    writer = _builder(config, data_dir, samples)
    records.write(writer)
    return _builder(config, data_dir)


@contextlib.contextmanager
def _scratch_folder(builder: Arcade) -> Iterator[Path]:
    """Makes a folder for the download on the disk of the data set, and removes it at the end."""
    root = Path(builder.data_dir_root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix="arcade_download_", dir=root)
    except OSError as error:
        raise records.cannot_write(root, error) from error
    with scratch as folder:
        yield Path(folder)


def _download(scratch: Path) -> Path:
    """Downloads the official archive and returns the folder that contains its `syntax/`."""
    downloader.MAX_RETRIES = 3  # TFDS's own 10 keep a user without network waiting for minutes
    try:
        archive = tfds.download.DownloadManager(download_dir=scratch).download(URL)
    except (OSError, tfds.download.DownloadError) as error:
        raise UserError(f"cannot download {URL} ({error}); {_BY_HAND}") from error
    # TFDS checks a checksum only together with a size, and the exact size is not published.
    with open(archive, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise UserError(
            f"the download of {URL} has the SHA-256 {found} and not {SHA256}; try again, or "
            f"{_BY_HAND}"
        )
    return _unzip(archive, scratch / "unzipped")


def _unzip(archive: os.PathLike, target: Path) -> Path:
    """Unpacks the archive's syntax task and returns the folder that contains `syntax/`."""
    with zipfile.ZipFile(archive) as file:
        names = [name for name in file.namelist() if "syntax" in PurePosixPath(name).parts]
        try:
            # macOS adds a shadow tree of its own to archives.
            file.extractall(target, [name for name in names if not name.startswith("__MACOSX")])
        except OSError as error:
            raise records.cannot_write(target, error) from error
    return next(target.rglob("syntax"), target / "syntax").parent


def _progress(samples: list[Sample], what: str) -> Iterable[Sample]:
    """Shows a progress bar if it takes longer than a moment."""
    return tqdm.tqdm(samples, desc=what, unit="image", delay=1, leave=False)


def _split_folders(source: Path) -> dict[str, Path]:
    """Returns the folder of each split that is present."""
    syntax = source / "syntax"
    if not syntax.is_dir():
        raise UserError(
            f"config.data.source={source} has no folder syntax/; give the folder of the official "
            "layout that contains syntax/, or leave it empty to download ARCADE"
        )
    folders = {s: syntax / f for s, f in _FOLDER_OF_SPLIT.items() if (syntax / f).is_dir()}
    if not folders:
        raise UserError(f"{syntax} has none of the folders train, val and test; put one there")
    for folder in folders.values():
        annotations, pictures = _annotation_file(folder), folder / "images"
        if not annotations.is_file() or not pictures.is_dir():
            missing = pictures if annotations.is_file() else annotations
            raise UserError(f"{missing} is missing; restore it, or remove the folder {folder}")
    return folders


def _annotation_file(folder: Path) -> Path:
    return folder / "annotations" / f"{folder.name}.json"


def _digest(folders: Iterable[Path]) -> str:
    """Returns a key that changes when the annotations or the image files change."""
    digest = hashlib.sha256()
    try:
        for folder in folders:
            digest.update(_annotation_file(folder).read_bytes())
            for path in sorted(filter(Path.is_file, (folder / "images").iterdir())):
                status = path.stat()
                stamp = f"\n{folder.name}/{path.name} {status.st_size} {status.st_mtime_ns}"
                digest.update(os.fsencode(stamp))
    except OSError as error:
        raise UserError(
            f"cannot read {error.filename} ({error.strerror}); make it readable"
        ) from error
    return digest.hexdigest()[:16]


def _read_split(folder: Path) -> list[Sample]:
    """Reads and checks the annotations of one split, but not its image files."""
    path = _annotation_file(folder)
    document = _load_json(path)
    samples = _read_images(_field(document, "images", list, path), path, folder / "images")
    for annotation in _field(document, "annotations", list, path):
        image_id = _field(annotation, "image_id", (int, str), path)
        if image_id not in samples:
            raise UserError(
                f"{path}: annotation {annotation.get('id')} belongs to image id {image_id}, which "
                "is not among the images; add the image or remove the annotation"
            )
        samples[image_id].polygons.extend(_read_polygons(annotation, samples[image_id], path))
    for sample in samples.values():
        if not sample.polygons:
            raise UserError(
                f"{path}: image {sample.path.name} (id {sample.id}) has no polygon; annotate the "
                "image or remove it"
            )
    return list(samples.values())


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable as JSON ({error}); restore the file") from error


def _field(record: Any, key: str, kind: type | tuple[type, ...], path: Path) -> Any:
    """Returns a field of a COCO record, if it is there and of the right kind."""
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, kind):
        raise UserError(
            f"{path}: {reprlib.repr(record)} has no valid field {key!r}; restore the official "
            "file or add the field"
        )
    return value


def _read_images(records: list, path: Path, folder: Path) -> dict[int | str, Sample]:
    """Returns the samples by image id, in the file's order and without polygons."""
    samples, names = {}, set()
    for record in records:
        image_id = _field(record, "id", (int, str), path)
        name = _field(record, "file_name", str, path)
        for value, taken, what in ((image_id, samples, "image id"), (name, names, "file_name")):
            if value in taken:
                raise UserError(
                    f"{path}: {what} {value} occurs twice (second time: id {image_id}, file_name "
                    f"{name}); remove or rename one of the two"
                )
        if Path(name).name != name or not name.isprintable():
            raise UserError(
                f"{path}: image id {image_id} has the file_name {name!r}; give the bare name of a "
                "file in the folder images/"
            )
        names.add(name)
        size = (_field(record, "height", int, path), _field(record, "width", int, path))
        samples[image_id] = Sample(image_id, folder / name, *size, [])
    if not samples:
        raise UserError(f"{path} lists no images; restore the file, or remove the split")
    return samples


def _read_polygons(annotation: dict, sample: Sample, path: Path) -> list[np.ndarray]:
    """Returns an annotation's polygons, each float64 (points, 2) as x, y."""
    where = f"{path}: annotation {annotation.get('id')} of {sample.path.name} (id {sample.id})"
    parts = annotation.get("segmentation")
    if not isinstance(parts, list) or not parts:
        raise UserError(
            f"{where} has the segmentation {reprlib.repr(parts)}; give a list of polygons"
        )
    return [_read_polygon(part, sample, where) for part in parts]


def _read_polygon(part: Any, sample: Sample, where: str) -> np.ndarray:
    if not isinstance(part, list) or not all(isinstance(value, int | float) for value in part):
        raise UserError(f"{where} has the polygon {reprlib.repr(part)}; give a list of numbers")
    if len(part) % 2 or len(part) < 6:
        raise UserError(
            f"{where} has a polygon of {len(part)} coordinates; give x and y of at least 3 points"
        )
    try:
        polygon = np.array(part, np.float64).reshape(-1, 2)
    except OverflowError as error:
        raise UserError(
            f"{where} has the polygon {reprlib.repr(part)}, a coordinate of which is too large for "
            "any image; correct it"
        ) from error
    limit = (sample.width, sample.height)
    inside = np.all((polygon >= 0) & (polygon <= limit), axis=1)
    if not inside.all():
        x, y = polygon[~inside][0]
        raise UserError(
            f"{where} has a polygon with the point ({x:g}, {y:g}) outside the image, which is "
            f"{sample.width} wide and {sample.height} high; correct the point"
        )
    return polygon


def _check_images(samples: list[Sample], folder: Path) -> None:
    """Checks that each image decodes and has the size that its annotation gives."""
    path = _annotation_file(folder)
    for sample in _progress(samples, "Checking images"):
        where = f"{path}: image id {sample.id}"
        try:
            height, width = images.read_grey(sample.path).shape
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        if (height, width) != (sample.height, sample.width):
            raise UserError(
                f"{where} is {sample.width} x {sample.height} by its annotation, but {sample.path} "
                f"is {width} x {height}; restore the file or correct the annotation"
            )


def _warn_of_unnamed(samples: list[Sample], folder: Path) -> None:
    named = {sample.path.name for sample in samples}
    present = {p.name for p in (folder / "images").iterdir() if p.suffix.lower() in images.SUFFIXES}
    if unnamed := sorted(present - named):
        logging.warning(
            "%s: %d images without annotation are ignored, the first is %s",
            folder / "images",
            len(unnamed),
            unnamed[0],
        )
