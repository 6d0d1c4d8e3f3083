"""Results as one page that needs nothing but a browser: no network, no other file.

`page/` has what the page is made of. Its script draws everything from the data in the page, which
the functions here put together.
"""

import itertools
import json
import math
import string
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tprnet_jax.report import palette
from tprnet_jax.report.curves import Plot
from tprnet_jax.report.destination import DONE
from tprnet_jax.report.metrics import MIDDLE, REACH, THIN
from tprnet_jax.report.tables import STAGES, Scores

_PAGE = Path(__file__).parent / "page"
_SCRIPTS = ("dom.js", "charts.js", "table.js", "viewer.js", "report.js")
_POINTS = 400  # Of a curve, at most.
# What a page need not have.
_NOTHING = {
    "means": None,
    "interval": {},
    "counts": {},
    "remarks": {},
    "notes": [],
    "plots": [],
    "details": {},
}


class Column(NamedTuple):
    """One value of every image.

    Attributes:
        name: Its key.
        label: What stands above it.
        words: What it is.
        digits: After the point.
        better: An arrow to where it is better.
        group: The table of means that it is in.
        bar: Whether that draws it, as a share of 1.
        caption: Whether it stands below the picture of an image.
    """

    name: str
    label: str
    words: str = ""
    digits: int = 3
    better: str = ""
    group: str = ""
    bar: bool = False
    caption: bool = False


_PAPER, _LOST, _CALIBRE, _FIELD = (
    "The paper's metrics",
    "Where the Dice is lost",
    "Centreline recall by calibre",
    "Surface and topology",
)
_FAR, _SHARE = f"more than {REACH} pixels from", "as a share of the true area"
_METRICS = [
    Column("dice", "Dice", "2 TP / (2 TP + FP + FN)", 4, "↑", _PAPER, caption=True),
    Column("iou", "IoU", "TP / (TP + FP + FN)", 4, "↑", _PAPER),
    Column("precision", "Precision", "TP / (TP + FP)", 4, "↑", _PAPER),
    Column("recall", "Recall", "TP / (TP + FN)", 4, "↑", _PAPER),
    Column("asd", "ASD", "Average surface distance, pixels", 2, "↓", _PAPER, caption=True),
    Column("missed", "Missed", f"True area {_FAR} the predicted, {_SHARE}", 3, "↓", _LOST, True),
    Column("extra", "Extra", f"Predicted area {_FAR} the true, {_SHARE}", 3, "↓", _LOST, True),
    Column("rim", "Rim", "Dice without missed and extra area", 3, "↑", _LOST, True),
    Column("area_ratio", "Area", "Predicted area over true area", 2, "", _LOST),
    Column("recall_thin", "Thin", f"Radius up to {THIN} pixels", 3, "↑", _CALIBRE, True),
    Column("recall_middle", "Middle", f"Radius up to {MIDDLE} pixels", 3, "↑", _CALIBRE, True),
    Column("recall_thick", "Thick", f"Radius over {MIDDLE} pixels", 3, "↑", _CALIBRE, True),
    Column("hd95", "HD95", "95th percentile of surface distances, pixels", 2, "↓", _FIELD),
    Column("cldice", "clDice", "Dice of the centrelines", 4, "↑", _FIELD),
    Column("betti0", "Betti 0", "Error in the number of components", 2, "↓", _FIELD),
    Column("betti1", "Betti 1", "Error in the number of holes", 2, "↓", _FIELD),
]


def evaluation(
    result: Mapping[str, Any],
    scores: Scores,
    pictures: Mapping[int, dict],
    plots: Sequence[Plot],
    details: Mapping[str, Mapping[str, Any]],
    run: str,
) -> str:
    """The report of an evaluation.

    Args:
        result: What `metrics.json` has.
        scores: Of every image.
        pictures: By number of the image what `pictures.encode` returned, with the mask "truth" and
            one for each stage; of some images, or none.
        plots: Of the training; those without points are left out.
        details: Tables of names and values, by title.
        run: What was evaluated.
    """
    stages = [stage for stage in STAGES if stage in scores.rows]
    columns = _columns(scores.rows[stages[-1]][0])
    worst = {"column": [column.name for column in columns].index("dice"), "descending": False}
    return _document(
        {
            "title": f"TPRNet: {result['split']}, {result['images']} images",
            "facts": [("Run", run), *_facts_of_evaluation(result)],
            "words": _words(result),
            "stages": [{"name": stage, "label": STAGES[stage]} for stage in stages],
            "columns": [column._asdict() for column in columns],
            "counts": result.get("counts", {}),
            "means": {
                stage: {name: _plain(value) for name, value in result[stage].items()}
                for stage in stages
            },
            "interval": result.get("interval", {}),
            "names": scores.names,
            "values": {stage: _table(scores.rows[stage], columns) for stage in stages},
            "sort": worst,
            **_pictured(pictures, len(scores.names)),
            "plots": [_thinned(plot) for plot in plots if any(plot.lines.values())],
            "details": details,
        }
    )


def _columns(row: Mapping[str, Any]) -> list[Column]:
    """Those of the metrics that there are, in order, and of any that are not known here."""
    known = [column for column in _METRICS if column.name in row]
    names = {column.name for column in known}
    return known + [Column(name, name, group="Others") for name in row if name not in names]


def _facts_of_evaluation(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    changed = ", ".join(f"{field} {value}" for field, value in result["changed"].items())
    facts = {
        "Checkpoint": f"{result['checkpoint']}, step {result['step']}",
        "Data": result["source"],
        "Changed since training": changed,
        "Empty masks": _empty(result["empty"]),
    }
    return [(name, value) for name, value in facts.items() if value]


def _empty(cases: Mapping[str, Mapping[str, int]]) -> str:
    """What is said of masks without a pixel, which count like all others."""
    said = {"prediction": "predicted", "truth": "true", "both": "both"}
    return "; ".join(
        f"{STAGES[stage]}: " + ", ".join(f"{n} {said[case]}" for case, n in counts.items() if n)
        for stage, counts in cases.items()
        if any(counts.values())
    )


def _words(result: Mapping[str, Any]) -> str:
    words = f"Means over {result['images']} images; distances in pixels."
    if result.get("interval"):
        words += " Below each its 95 % interval, by bootstrap over the images."
    return words


def _thinned(plot: Plot) -> dict[str, Any]:
    """At most so many points of each line as can be seen, the last among them."""
    lines = {
        name: points[:: -math.ceil(len(points) / _POINTS)][::-1]
        for name, points in plot.lines.items()
        if points
    }
    return {"title": plot.title, "lines": lines}


# ---- A prediction --------------------------------------------------------------------------------

_FOUND = [
    Column("status", "Status", "Segmented now, or done before by an earlier command, or failed"),
    Column("size", "Size", "Height and width, pixels", caption=True),
    Column("area", "Vessel, %", "Share of the image that is vessel", 2, caption=True),
    Column("branches", "Branches", "Of the vessel tree", 0, caption=True),
    Column("length", "Length", "Of all branches of the vessel tree, pixels", 0),
    Column("length_mm", "Length, mm", "Of all branches of the vessel tree, millimetres", 1),
    Column("seconds", "Seconds", "Since the image before it; the first of a size compiles", 2),
]
_NOW, _BEFORE, _FAILED = "segmented", "done before", "failed"
_SENTENCES = 1000  # At most.


def prediction(manifest: Mapping[str, Any], entries: Sequence[dict], source: str) -> str:
    """The report of a prediction.

    Args:
        manifest: What `manifest.json` has.
        entries: What `journal.Journal` has of each image.
        source: What was to be segmented.
    """
    rows = list(_rows(manifest["files"], entries, Path(source).expanduser()))
    columns = [column for column in _FOUND if any(column.name in row for row in rows)]
    pictures = {n: row["picture"] for n, row in enumerate(rows) if "picture" in row}
    remarks = {n: row["remark"] for n, row in enumerate(rows) if "remark" in row}
    return _document(
        {
            "title": f"TPRNet: {Path(source).name}",
            "facts": _facts_of_prediction(manifest, rows, source),
            "stages": [{"name": "mask", "label": "Prediction"}],
            "columns": [column._asdict() for column in columns],
            "names": [row["name"] for row in rows],
            "values": {"mask": _table(rows, columns)},
            "sort": {"column": -1, "descending": False},
            **_pictured(pictures, len(rows)),
            "remarks": remarks,
            "notes": _notes(manifest),
        }
    )


def _rows(files: Sequence[dict], entries: Iterable[dict], root: Path) -> Iterator[dict]:
    """A row for each image, and one for each file that failed or of which no more is known."""
    of_file = defaultdict(list)
    for entry in sorted(entries, key=lambda entry: entry["frame"]):
        of_file[entry["file"]].append(entry)
    for record in files:
        path, images = Path(record["input"]), of_file[record["input"]]
        name = path.name if path == root else path.relative_to(root).as_posix()
        for entry in images:
            frame = f", {entry['frame']}" if record["frames"] > 1 else ""
            status = _BEFORE if entry["seconds"] is None else _NOW
            yield entry | {"name": name + frame, "status": status, "size": _size(entry["size"])}
        if "error" in record:
            yield {"name": name, "status": _FAILED, "remark": record["error"]}
        elif not images:
            bare = {"name": name, "status": _BEFORE, "size": _size(record["size"])}
            yield bare | {"remark": "It was done before, without a mask that could be shown here."}


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]}"


def _facts_of_prediction(
    manifest: Mapping[str, Any], rows: Sequence[dict], source: str
) -> list[tuple[str, str]]:
    counts = Counter(row["status"] for row in rows)
    facts = {
        "Input": source,
        "Model": manifest["model"],
        "Images": ", ".join(f"{count} {status}" for status, count in counts.items()),
        "Outputs": ", ".join(manifest["outputs"]),
        "Seconds": f"{manifest['seconds']:.1f}",
        "Version": manifest["version"],
    }
    return list(facts.items())


def _notes(manifest: Mapping[str, Any]) -> list[str]:
    """What was said of files: of those that failed, why."""
    of_files = (
        [record["error"]] if "error" in record else record["notes"] for record in manifest["files"]
    )
    said = [*manifest["notes"], *manifest["problems"], *itertools.chain.from_iterable(of_files)]
    notes = [sentence for sentence in said if sentence != DONE]
    more = len(notes) - _SENTENCES
    return notes[:_SENTENCES] + ([f"And {more} more, see manifest.json."] if more > 0 else [])


# ---- What both have ------------------------------------------------------------------------------


def _pictured(pictures: Mapping[int, dict], images: int) -> dict[str, Any]:
    """Pictures, and what is said where there is none and nothing else to remark."""
    without = (
        f"So that this page stays small, it has pictures of {len(pictures)} of {images} images."
    )
    return {"pictures": pictures, "without": without}


def _table(rows: Iterable[Mapping[str, Any]], columns: Sequence[Column]) -> list[list]:
    """For each row its values in the order of the columns."""
    return [[_plain(row.get(column.name)) for column in columns] for row in rows]


def _plain(value: str | float | None) -> str | float | None:
    """A value as JSON has it: with six digits, and None where it is not defined."""
    if value is None or isinstance(value, str):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _document(data: Mapping[str, Any]) -> str:
    """The page that shows this; its script says what has to be in it."""
    template = string.Template((_PAGE / "report.html").read_text())
    text = json.dumps({**_NOTHING, **data}, separators=(",", ":"), allow_nan=False)
    return template.substitute(
        palette=palette.css(),
        style=(_PAGE / "report.css").read_text(),
        script="\n".join((_PAGE / name).read_text() for name in _SCRIPTS),
        # No name can end the script that holds the data.
        data=text.replace("<", "\\u003c"),
    )
