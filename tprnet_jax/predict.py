"""A user's angiograms in; masks and overlays out."""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from tprnet_jax import config as configuration
from tprnet_jax.data.images import SUFFIXES, read_grey, write_png
from tprnet_jax.method import inference
from tprnet_jax.report import figures
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.workdir import restore


def run(config: ConfigDict, workdir: Path) -> None:
    """Segments `config.predict.input` into `config.predict.output`.

    For each image NAME.*, of any size, writes `NAME_mask.png` (0 and 255, the input's size) and
    `NAME_overlay.png`. An image that cannot be read is named and skipped.

    Raises:
        UserError: Input, output or checkpoint cannot be used, or, at the end, images were skipped.
    """
    paths = find_images(config.predict.input)
    configuration.check(config)
    cascade = configuration.cascade(config)
    params, _ = restore(config, workdir, cascade)
    output = _make_output(config.predict.output, paths[0].parent)
    paths = paths[jax.process_index() :: jax.process_count()]  # Each process takes its share.
    skipped = []
    examples = _readable(paths, skipped)
    for example, masks in inference.segment_examples(
        cascade, params, examples, config.predict.batch
    ):
        stem, mask = example["stem"], masks["final"]
        write_png(output / f"{stem}_mask.png", mask.astype(np.uint8) * 255)
        write_png(output / f"{stem}_overlay.png", figures.overlay(example["image"][..., 0], mask))
    print(f"{len(paths) - len(skipped)} of {len(paths)} images segmented into {output}")
    if skipped:
        names = ", ".join(path.name for path in skipped)
        raise UserError(f"{len(skipped)} of {len(paths)} images could not be read: {names}")


def _readable(paths: list[Path], skipped: list[Path]) -> Iterator[dict]:
    """The images that can be read; the others are named, and noted in `skipped`."""
    for path in tqdm.tqdm(paths, desc="predict", unit="image"):
        try:
            yield {"stem": path.stem, "image": read_grey(path)[..., None]}
        except UserError as error:
            tqdm.tqdm.write(f"skipped: {error}", file=sys.stderr)
            skipped.append(path)


def find_images(given: str) -> list[Path]:
    """The image files that `config.predict.input` names, sorted.

    Raises:
        UserError: There is none, or two would write the same mask.
    """
    if not given:
        raise UserError("config.predict.input is empty; give an image file or a folder of images")
    path = Path(given).expanduser()
    if not path.exists():
        raise UserError(f"config.predict.input={given} does not exist; give a file or a folder")
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise UserError(
                f"config.predict.input={given} is none of {', '.join(SUFFIXES)}; convert it to one"
            )
        return [path]
    # A dot begins the names of companion files that macOS leaves on other disks.
    paths = sorted(
        p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
    )
    if not paths:
        raise UserError(f"config.predict.input={given} has no {', '.join(SUFFIXES)} file")
    stem, count = Counter(p.stem for p in paths).most_common(1)[0]
    if count > 1:
        same = ", ".join(p.name for p in paths if p.stem == stem)
        raise UserError(f"{same} in {given} would all write {stem}_mask.png; rename all but one")
    return paths


def _make_output(given: str, source: Path) -> Path:
    if not given:
        raise UserError("config.predict.output is empty; give the folder to write masks to")
    output = Path(given).expanduser()
    if output.resolve() == source.resolve():
        raise UserError(
            f"config.predict.output={given} is the folder of the images; give another, so that "
            "nothing there is overwritten"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"config.predict.output={given} cannot be made ({error.strerror}); give another folder"
        ) from error
    return output
