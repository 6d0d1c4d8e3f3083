import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from tprnet_jax.report import html, pictures
from tprnet_jax.report.curves import Plot
from tprnet_jax.report.destination import DONE
from tprnet_jax.report.tables import Scores

HOSTILE = '</script><script>alert(1)</script>\udcff&amp;".png'


def data_of(page):
    """What a page shows, found as a browser finds it."""
    found = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attributes):
            self.is_data = tag == "script" and dict(attributes).get("id") == "data"

        def handle_data(self, text):
            if self.is_data:
                found.append(text)

        def handle_endtag(self, tag):
            self.is_data = False

    Parser.is_data = False
    Parser().feed(page)
    return json.loads("".join(found))


def mask_of(text):
    """The mask that a browser paints."""
    return np.array(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGBA"))[..., 3] > 0


def scores(names=("a.png", HOSTILE)):
    """Two stages, of which the second has no thick vessel in the first image."""
    row = {"dice": 0.5, "asd": 1.25, "recall_thick": 0.25, "novel": 3.0}
    last = {**row, "recall_thick": None, "dice": 0.75}
    count = len(names)
    rows = {"global": [row] * count, "final": [last, *[row] * (count - 1)]}
    return Scores(list(names), rows, {stage: [None] * count for stage in rows})


def result(**more):
    means = {"dice": 0.5, "asd": 1.25, "recall_thick": None, "novel": 3.0}
    cases = {"both": 0, "prediction": 1, "truth": 0}
    return {
        "images": 2,
        "global": means,
        "final": means,
        "empty": {"global": dict.fromkeys(cases, 0), "final": cases},
        "split": "test",
        "source": "",
        "checkpoint": "best",
        "step": 7,
        "changed": {},
        **more,
    }


def evaluation(shown=None, plots=(), **more):
    return html.evaluation(result(**more), scores(), shown or {}, plots, {}, "runs/a")


def test_names_cannot_leave_the_data():
    page = evaluation()
    assert data_of(page)["names"] == ["a.png", HOSTILE]
    assert page.count("</script>") == 2
    assert "alert" in page
    assert page.encode()  # Whatever bytes are in a name.


def test_what_is_undefined_is_null_and_what_is_unknown_is_shown():
    page = data_of(evaluation())
    assert [column["name"] for column in page["columns"]] == [
        "dice",
        "asd",
        "recall_thick",
        "novel",
    ]
    assert page["columns"][-1]["label"] == "novel"
    assert page["values"]["final"] == [[0.75, 1.25, None, 3.0], [0.5, 1.25, 0.25, 3.0]]
    assert page["means"]["final"]["recall_thick"] is None
    assert page["interval"] == {}
    assert ["Empty masks", "Final: 1 predicted"] in page["facts"]
    ends = {"final": {"dice": [0.4, 0.6], "recall_thick": None}}
    assert data_of(evaluation(interval=ends))["interval"] == ends


def test_not_a_number_is_not_defined_either():
    page = data_of(evaluation(final={**result()["final"], "asd": float("nan"), "dice": np.inf}))
    assert page["means"]["final"]["asd"] is page["means"]["final"]["dice"] is None


def test_a_curve_is_thinned_to_what_can_be_seen_and_keeps_its_end():
    points = [(step, 0.5) for step in range(10_000)]
    plots = [Plot("Loss", {"loss": points}), Plot("Dice", {}), Plot("Rate", {"rate": []})]
    (plot,) = data_of(evaluation(plots=plots))["plots"]
    assert plot["title"] == "Loss"
    assert len(plot["lines"]["loss"]) == 400
    assert plot["lines"]["loss"][-1] == [9999, 0.5]
    assert plot["lines"]["loss"][0] == [24, 0.5]


def test_images_without_picture_are_said():
    page = data_of(evaluation({1: {"image": "", "masks": {}}}))
    assert page["pictures"].keys() == {"1"}
    assert page["without"].endswith("it has pictures of 1 of 2 images.")


def test_nothing_is_loaded_from_elsewhere():
    page = evaluation()
    assert "default-src 'none'" in page
    addresses = set(re.findall(r"\w+://[\w.]+", page))
    assert addresses == {"http://www.w3.org"}  # The name of SVG's elements.
    assert not re.search(r"<(link|script|img)[^>]+(src|href)=(?!\"data:)", page)


def test_two_hundred_angiograms_of_512_pixels_take_less_than_15_mb():
    """Of the most a JPEG file can have to hold: a smooth vessel tree in film grain."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[:512, :512]
    image = 0.5 + 0.2 * np.sin(row / 60) + rng.normal(0, 0.03, (512, 512))
    masks = {
        name: np.abs(column - 256 - 99 * np.sin(row / 40 + n)) < 6 for n, name in enumerate("abcd")
    }
    one = pictures.encode(image, masks)
    names = [f"{number}.png" for number in range(200)]
    page = html.evaluation(result(), scores(names), dict.fromkeys(range(200), one), [], {}, "")
    assert 5e6 < len(page) < 15e6


# ---- A prediction --------------------------------------------------------------------------------


MANIFEST = {
    "notes": ["1 other file"],
    "problems": [],
    "model": "step 7",
    "outputs": ("mask",),
    "seconds": 3.0,
    "version": "1",
}


def predicted(files, entries, **more):
    return html.prediction(MANIFEST | {"files": files} | more, entries, "in")


def entry(file, frame=1, **more):
    return {"file": file, "frame": frame, "size": (64, 48), "area": 12.5, "seconds": 0.25, **more}


def record(name, frames=1, **more):
    return {"input": f"in/{name}", "size": [64, 48], "frames": frames, "notes": [], **more}


def test_a_row_for_each_image_and_each_file_that_has_none():
    files = [
        record("deep/a.png"),
        record("b.mp4", 2, notes=["b.mp4 has fewer frames"]),
        record("c.png", notes=[DONE]),
        record("d.mp4", 9, error="d.mp4 is damaged"),
        {"input": "in/e.png", "error": "e.png is damaged"},
    ]
    entries = [entry("in/b.mp4", 2), entry("in/b.mp4"), entry("in/deep/a.png", seconds=None)]
    page = data_of(predicted(files, [*entries, entry("in/d.mp4", picture={"image": "x"})]))
    assert page["names"] == [
        "deep/a.png",
        "b.mp4, 1",
        "b.mp4, 2",
        "c.png",
        "d.mp4, 1",
        "d.mp4",
        "e.png",
    ]
    assert [column["name"] for column in page["columns"]] == ["status", "size", "area", "seconds"]
    now, before, failed = "segmented", "done before", "failed"
    assert page["values"]["mask"] == [
        [before, "64 x 48", 12.5, None],
        [now, "64 x 48", 12.5, 0.25],
        [now, "64 x 48", 12.5, 0.25],
        [before, "64 x 48", None, None],
        [now, "64 x 48", 12.5, 0.25],
        [failed, None, None, None],
        [failed, None, None, None],
    ]
    assert page["pictures"] == {"4": {"image": "x"}}
    done = "It was done before, without a mask that could be shown here."
    assert page["remarks"] == {"3": done, "5": "d.mp4 is damaged", "6": "e.png is damaged"}
    assert page["notes"] == [
        "1 other file",
        "b.mp4 has fewer frames",
        "d.mp4 is damaged",
        "e.png is damaged",
    ]
    assert ["Images", "2 done before, 3 segmented, 2 failed"] in page["facts"]


def test_one_file_is_named_without_its_folder():
    page = html.prediction(MANIFEST | {"files": [record("a.png", error="no")]}, [], "in/a.png")
    assert data_of(page)["names"] == ["a.png"]


def test_thousands_of_sentences_are_cut():
    page = predicted([], [], problems=[f"{n} is closed" for n in range(1500)])
    notes = data_of(page)["notes"]
    assert len(notes) == 1001
    assert notes[-1] == "And 501 more, see manifest.json."
