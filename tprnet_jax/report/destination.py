"""The folder that a prediction writes to, and its `manifest.json`: by what, and what came of it."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

import tprnet_jax
from tprnet_jax.data import inputs
from tprnet_jax.data.inputs import Listing
from tprnet_jax.runtime import devices
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.files import read_json, sweep, write_whole
from tprnet_jax.runtime.threads import in_threads
from tprnet_jax.segmenter import Segmenter

DONE = "all outputs were there already"  # Is noted of a file that has been skipped.
# What is written of each image, and of each file as a whole, by the end of its name.
OF_IMAGE = {
    "mask": "_mask.png",
    "probability": "_probability.png",
    "overlay": "_overlay.png",
    "contours": "_contours.json",
    "tree": "_tree.json",
}
OF_FILE = {"seg": "_seg.dcm", "video": "_overlay.mp4"}
_ENDINGS = "|".join(map(re.escape, [*OF_IMAGE.values(), *OF_FILE.values()]))
# An image's own number, or that of an image of a run.
_OUTPUT = re.compile(rf"(?P<stem>.*?)(?P<number>_\d{{4,}})?(?:{_ENDINGS})", re.DOTALL)


class Earlier(NamedTuple):
    """What is known of the inputs, by the names of their outputs, and of earlier predictions.

    Attributes:
        digests: SHA-256 of the content of each input that can be read.
        same: Names that earlier ones have read the same content under, by the same model.
        other: Names that they have read another content under, and whose outputs are still there.
    """

    digests: dict[str, str]
    same: set[str]
    other: set[str]


def make(config: ConfigDict, listing: Listing) -> Path:
    """The folder to write to, which can be written to and is apart from the input.

    What a killed prediction has left half-written there is deleted.

    Args:
        config: `config.predict`.
        listing: What is to be segmented.

    Raises:
        UserError: There can be no such folder.
    """
    given = config.output
    if not given:
        raise UserError("config.predict.output is empty; give the folder to write masks to")
    output = Path(given).expanduser()
    if inputs.would_be_hit(config.input, listing, output):
        raise UserError(
            f"config.predict.output={given} would write to the folder of the images; give another, "
            "so that nothing there is overwritten and no mask is taken for an image"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        if devices.is_first():
            for folder in {output, *((output / each.name).parent for each in listing.inputs)}:
                sweep(folder)
        devices.barrier("swept")  # Before any process writes.
        write_whole(output / ".writable", "")
        (output / ".writable").unlink(missing_ok=True)  # Another process may be quicker.
    except OSError as error:
        raise UserError(
            f"config.predict.output={given} cannot be written to ({error.strerror}); give another "
            "folder"
        ) from error
    return output


def begin_manifest(
    config: ConfigDict, model: Segmenter, listing: Listing, output: Path
) -> tuple[dict, Earlier]:
    """Says what is about to write to the folder, unless something else has written there before.

    Args:
        config: `config.predict`.
        model: That segments.
        listing: What is to be segmented.
        output: The folder.

    Returns:
        The manifest so far, and what is there of earlier predictions.

    Raises:
        UserError: Another model, or the same at another scale or temperature, has.
    """
    path = output / "manifest.json"
    before = read_json(path) if path.is_file() else {}
    before = before if isinstance(before, dict) else {}  # It is of something else.
    made_by = {
        "model": model.name,
        "digest": model.digest,
        "side": model.side,
        "scale": config.scale,
        "temperature": model.temperature,
    }
    difference = _difference(made_by, before)
    if path.is_file() and difference and not config.overwrite:
        raise UserError(
            f"{output} has what another prediction wrote ({difference}); give another "
            "config.predict.output, or --config.predict.overwrite=True"
        )
    read = {} if difference else before.get("sha256", {})
    digests = _digests(listing)
    there = digests.keys() & _names_of_outputs(output, listing)
    same = {name for name, digest in digests.items() if read.get(name) == digest}
    other = set() if config.overwrite else (there & read.keys()) - same
    # What is there and is to be segmented again counts only when that is done: until then it is
    # what another model, or another file, has given.
    again = there if config.overwrite else there - same - other
    known = read | {name: digests[name] for name in digests.keys() - other}
    manifest = {
        **made_by,
        "version": tprnet_jax.__version__,
        "outputs": config.outputs,
        "sha256": {name: digest for name, digest in known.items() if name not in again},
    }
    devices.barrier("read")  # Before the first process writes.
    _write(output, manifest)
    return manifest, Earlier(digests, same, other)


def _difference(made_by: dict, before: dict) -> str | None:
    """In what a manifest is of another prediction than this, None where it is of one like it."""
    differing = [key for key in made_by if key != "model" and made_by[key] != before.get(key)]
    if not differing:  # The workdir of a model may be spelt in many ways.
        return None
    first = "model" if differing[0] == "digest" else differing[0]
    was, now = before.get(first), made_by[first]
    return f"{first} {was}, now {now}" if was != now else f"another {now}"


def _digests(listing: Listing) -> dict[str, str]:
    """Of the content of each file by the name of its outputs, as far as it can be read."""
    found = in_threads(lambda each: _digest(each.path), listing.inputs, "Reading")
    return {each.name: digest for each, digest in zip(listing.inputs, found, strict=True) if digest}


def _digest(path: Path) -> str | None:
    """None if it cannot be read, which is said when it is to be segmented."""
    try:
        if not path.is_file():  # To open a pipe would wait for ever.
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def _names_of_outputs(output: Path, listing: Listing) -> set[str]:
    """Names of inputs that there could be outputs of, in the folders of these inputs."""
    names = set()
    for folder in {Path(each.name).parent for each in listing.inputs}:
        there = os.listdir(output / folder) if (output / folder).is_dir() else []
        for match in filter(None, map(_OUTPUT.fullmatch, there)):
            stems = match["stem"], match["stem"] + (match["number"] or "")
            names |= {(folder / stem).as_posix() for stem in stems}
    return names


def end_manifest(
    manifest: dict, earlier: Earlier, listing: Listing, records: Sequence[dict], output: Path
) -> None:
    """Adds what has become of each file, and writes that too."""
    failed = {record["input"] for record in records if "error" in record}
    for record in filter(lambda record: "error" in record, records):
        outputs = record.get("outputs", ())
        record["outputs"] = [name for name in outputs if (output / name).is_file()]
    done = {each.name for each in listing.inputs if str(each.path) not in failed}
    manifest["sha256"] |= {name: earlier.digests[name] for name in done & earlier.digests.keys()}
    manifest |= {
        "files": sorted(records, key=lambda record: record["input"]),
        "notes": listing.notes,
        "problems": listing.problems,
    }
    _write(output, manifest)


def _write(output: Path, manifest: dict) -> None:
    if devices.is_first():
        write_whole(output / "manifest.json", json.dumps(manifest, indent=2) + "\n")
