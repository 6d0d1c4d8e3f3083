"""The folder that a prediction writes to, and its `manifest.json`: by what, and what came of it."""

import json
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

import tprnet_jax
from tprnet_jax.data import inputs
from tprnet_jax.data.inputs import Listing
from tprnet_jax.runtime import devices
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.files import read_json, sweep, write_whole
from tprnet_jax.segmenter import Segmenter

DONE = "all outputs were there already"  # Is noted of a file that has been skipped.


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


def begin_manifest(config: ConfigDict, model: Segmenter, output: Path) -> dict:
    """Says what is about to write to the folder, unless something else has written there before.

    Args:
        config: `config.predict`.
        model: That segments.
        output: The folder.

    Raises:
        UserError: Another model, or the same at another scale or temperature, has.
    """
    path = output / "manifest.json"
    made_by = {
        "model": model.name,
        "side": model.side,
        "scale": config.scale,
        "temperature": model.temperature,
    }
    if path.is_file() and not config.overwrite:
        before = read_json(path)
        before = before if isinstance(before, dict) else {}  # It is of something else.
        before = {"temperature": 1.0} | before  # What earlier versions do not say.
        for key, value in made_by.items():
            if before.get(key) != value:
                raise UserError(
                    f"{output} has what another prediction wrote ({key} {before.get(key)}, now "
                    f"{value}); give another config.predict.output, or "
                    "--config.predict.overwrite=True"
                )
    manifest = {**made_by, "version": tprnet_jax.__version__, "outputs": config.outputs}
    _write(output, manifest)
    return manifest


def end_manifest(manifest: dict, listing: Listing, records: Sequence[dict], output: Path) -> None:
    """Adds what has become of each file, and writes that too."""
    for record in filter(lambda record: "error" in record, records):
        outputs = record.get("outputs", ())
        record["outputs"] = [name for name in outputs if (output / name).is_file()]
    manifest |= {
        "files": sorted(records, key=lambda record: record["input"]),
        "notes": listing.notes,
        "problems": listing.problems,
    }
    _write(output, manifest)


def _write(output: Path, manifest: dict) -> None:
    if devices.is_first():
        write_whole(output / "manifest.json", json.dumps(manifest, indent=2) + "\n")
