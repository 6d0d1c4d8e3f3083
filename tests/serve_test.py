"""What the page shows is what --mode=predict writes."""

import base64
import dataclasses
import json
import os
import re
import shutil
import signal
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

import tprnet_jax
from tprnet_jax import config as configuration
from tprnet_jax import predict, serve
from tprnet_jax.data import scene
from tprnet_jax.models.umamba import UMamba
from tprnet_jax.models.unet import UNet
from tprnet_jax.runtime.errors import UserError

web = pytest.importorskip("tprnet_jax.runtime.web", reason='needs pip install -e ".[serve]"')


@pytest.fixture(scope="module")
def model(trained):
    return tprnet_jax.load(trained[1])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """An image and a run of 3 frames with a spacing of 0.2 mm down and 0.3 mm across."""
    folder = tmp_path_factory.mktemp("files")
    drawn = [scene.draw(0, index, 64)[0] for index in range(4)]
    cv2.imwrite(str(folder / "image.png"), drawn[0])
    pytest.importorskip("pydicom")
    import dicom_test

    run = dicom_test.data_set(np.stack(drawn[1:]), PixelSpacing=[0.2, 0.3])
    dicom_test.save(folder / "run.dcm", run)
    return folder


@pytest.fixture(scope="module")
def written(trained, files, tmp_path_factory):
    """What --mode=predict writes of them."""
    config = trained[0].copy_and_resolve_references()
    config.predict.input = str(files)
    config.predict.output = str(tmp_path_factory.mktemp("written"))
    config.predict.outputs = ("mask", "overlay", "tree")
    predict.run(config, trained[1])
    return {path.name: path.read_bytes() for path in predict.Path(config.predict.output).iterdir()}


def _shown(model, path, name=None):
    """The first line, and the others."""
    first, *frames = json.loads(json.dumps(list(serve.lines(model, 0, path, name or path.name))))
    return first, frames


def _contents(frame):
    """The files of a frame by name."""
    return {
        each["name"]: base64.b64decode(each["data"], validate=True)
        for each in frame["files"].values()
    }


@pytest.mark.parametrize(
    ("name", "stems"), [("image.png", ["image"]), ("run.dcm", [f"run_000{i}" for i in (1, 2, 3)])]
)
def test_the_files_of_a_frame_are_those_of_predict(model, files, written, name, stems):
    _, frames = _shown(model, files / name)
    assert [frame["frame"] for frame in frames] == list(range(1, len(stems) + 1))
    for frame, stem in zip(frames, stems, strict=True):
        contents = _contents(frame)
        contents.pop(f"{stem}.png")
        names = [f"{stem}_{kind}" for kind in ("mask.png", "overlay.png", "tree.json")]
        assert contents == {name: written[name] for name in names}


def test_an_image_is_shown_as_it_is(model, files):
    first, (frame,) = _shown(model, files / "image.png", "../another.png")
    assert first == {
        "name": "../another.png",
        "size": [64, 64],
        "seen": [64, 64],
        "frames": 1,
        "spacing_mm": None,
        "notes": [],
    }
    image = cv2.imdecode(np.frombuffer(_contents(frame)["another.png"], np.uint8), -1)
    np.testing.assert_array_equal(image, cv2.imread(str(files / "image.png"), -1))


def test_totals_are_sums_of_the_tree_and_counts_of_the_mask():
    mask = np.zeros((4, 5), bool)
    mask[1:3, 1:4] = True
    edges = [{"length": 3.0, "length_mm": 0.9}, {"length": 1.5, "length_mm": 0.4}]
    in_pixels = {"branches": 2, "length": 4.5, "area": 6, "share": 0.3}
    assert serve.totals(mask, {"edges": edges, "spacing_mm": None}) == in_pixels
    found = serve.totals(mask, {"edges": edges, "spacing_mm": [0.2, 0.3]})
    assert found == pytest.approx(in_pixels | {"length_mm": 1.3, "area_mm2": 0.36})


def test_a_run_knows_its_spacing_and_says_what_was_done_to_it(model, files):
    first, frames = _shown(model, files / "run.dcm", "x.dcm")
    assert (first["frames"], first["spacing_mm"]) == (3, [0.2, 0.3])
    assert first["notes"] == ["x.dcm: has no window, so all values of 8 bits share the grey scale"]
    for frame in frames:
        totals = frame["totals"]
        assert totals["area_mm2"] == pytest.approx(0.06 * totals["area"])
        assert totals["area"] > 0


def test_of_a_run_too_long_for_the_page_there_are_the_first_frames(model, files, monkeypatch):
    monkeypatch.setattr(serve, "MOST_PIXELS", 2 * 64 * 64 + 1)
    first, frames = _shown(model, files / "run.dcm")
    assert len(frames) == first["frames"] == 2
    assert first["notes"][-1] == "only the first 2 of 3 frames; --mode=predict takes all"
    monkeypatch.setattr(serve, "MOST_PIXELS", 1)
    assert len(_shown(model, files / "image.png")[1]) == 1


def _damaged(folder):
    """Files of five kinds of wrong, and a word of what is said of each."""
    import dicom_test

    (folder / "text.txt").write_text("text")
    cv2.imwrite(str(folder / "small.png"), np.zeros((31, 64), np.uint8))
    whole = cv2.imencode(".png", scene.draw(0, 0, 64)[0])[1].tobytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "no.mp4").write_bytes(b"no video")
    data = dicom_test.data_set(np.zeros((1, 40, 40), np.uint8))
    del data.PixelData
    dicom_test.save(folder / "no_pixels.dcm", data)
    return {
        "text.txt": "is damaged or no image",
        "small.png": "is 31 high and 64 wide; at least 32 x 32",
        "cut.png": "is damaged or no image",
        "no.mp4": "is damaged or no video",
        "no_pixels.dcm": "is encrypted or has no pixel data",
    }


@pytest.fixture
def served(trained, model):
    """A server of the page, as `run` makes it, that takes files of up to 1 MB."""
    config = trained[0].copy_and_resolve_references()
    config.serve.max_mb = 1
    with ThreadPoolExecutor(1) as worker, web.listen("127.0.0.1", 0) as listener:
        server = web.server(serve.application(config, model, worker, "127.0.0.1"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield web.url(listener)
        server.should_exit = True
        thread.join()


def test_a_megabyte_is_a_million_bytes(served):
    with urllib.request.urlopen(f"{served}/about") as about:
        assert json.load(about)["most"] == 1_000_000
    announced = {"Content-Length": "1000001"}
    larger = urllib.request.Request(f"{served}/segment?name=a.png", b"pixels", announced)
    with pytest.raises(urllib.error.HTTPError, match="413"):
        urllib.request.urlopen(larger)


# ---- The mode ------------------------------------------------------------------------------------


class _Browser:
    """Looks at the page once, and then has the process interrupted."""

    def __init__(self, number):
        self.number, self.seen = number, []

    def open(self, url):
        try:
            with urllib.request.urlopen(url) as page:
                self.seen = [url, page.read().decode()]
        finally:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_opens_the_page_and_ends_with_a_status_when_interrupted(
    trained, monkeypatch, capsys, number
):
    config, browser = trained[0].copy_and_resolve_references(), _Browser(number)
    config.serve.port = 0
    monkeypatch.setattr(serve.webbrowser, "get", lambda: browser)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        serve.run(config, trained[1])
    assert interrupt.value.status == 128 + number
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "Compiling for 64 x 64 pixels, which takes some seconds"
    url, page = browser.seen
    assert said[1].startswith(f"{url} segments with step ")
    assert len(said) == 2
    assert "not a medical device" in page


def test_by_the_address_that_is_said_the_page_can_be_called(trained, monkeypatch, capsys):
    """Of a host given by another name; this one is every address of the machine."""
    config, browser = trained[0].copy_and_resolve_references(), _Browser(signal.SIGINT)
    config.serve.port, config.serve.host = 0, "0"
    monkeypatch.setattr(serve.webbrowser, "get", lambda: browser)
    with pytest.raises(KeyboardInterrupt):
        serve.run(config, trained[1])
    assert browser.seen[0].startswith("http://0.0.0.0:")
    assert "Whoever reaches 0 can use the page" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("net", "size"),
    [
        (UNet((2,)), (64, 64)),
        (UMamba(variant="bot", size=(48, 80)), (64, 64)),
        (UMamba(variant="enc", size=(48, 80)), (48, 80)),
    ],
)
def test_it_compiles_for_images_that_the_network_takes(model, net, size):
    cascade = dataclasses.replace(model.cascade, global_net=net)
    assert serve._usual_size(model._replace(cascade=cascade, side=64)) == size


def test_the_browser_is_left_alone_where_that_is_wanted(trained, monkeypatch, capsys):
    config = trained[0].copy_and_resolve_references()
    config.serve.port, config.serve.open = 0, False
    monkeypatch.setattr(serve, "threading", None)  # Would fail: the browser has a thread.
    monkeypatch.setattr(web, "server", lambda app: SimpleNamespace(run=lambda sockets: None))
    serve.run(config, trained[1])
    assert re.search(r"^http://\S+ segments with step ", capsys.readouterr().out, re.MULTILINE)


def test_no_browser_at_all_is_no_error(monkeypatch):
    def none():
        raise serve.webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(serve.webbrowser, "get", none)
    serve._open("http://127.0.0.1:1")


def test_a_browser_in_the_terminal_is_not_opened(monkeypatch):
    lynx = serve.webbrowser.GenericBrowser("lynx")
    monkeypatch.setattr(lynx, "open", None)  # Would fail.
    monkeypatch.setattr(serve.webbrowser, "get", lambda: lynx)
    serve._open("http://127.0.0.1:1")


def test_a_missing_package_is_named_with_what_installs_it(trained, monkeypatch):
    monkeypatch.delattr("tprnet_jax.runtime.web")
    monkeypatch.delitem(sys.modules, "tprnet_jax.runtime.web")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    sentence = r'^--mode=serve needs uvicorn; install it with pip install -e "\.\[serve\]"$'
    with pytest.raises(UserError, match=sentence):
        serve.run(*trained)


def test_unless_it_is_told_otherwise_only_this_machine_sees_the_page():
    assert configuration.default().serve.host in web.LOOPBACK


# ---- In a browser --------------------------------------------------------------------------------


@pytest.fixture
def page(served):
    """The page in Chromium at the size of a phone, and what it asked for and complained of."""
    api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    if not (chromium := shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("there is no Chromium")
    api.expect.set_options(timeout=60_000)  # Of milliseconds; what is busy may be slow.
    with api.sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.set_default_timeout(60_000)
        page.said, page.asked = [], []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(served)
        page.expect = api.expect
        yield page
        browser.close()


def _drop(page, path):
    content = base64.b64encode(path.read_bytes()).decode()
    make = """([name, content]) => {
      const bytes = Uint8Array.from(atob(content), (x) => x.charCodeAt(0));
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], name));
      return transfer;
    }"""
    transfer = page.evaluate_handle(make, [path.name, content])
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def _saved(page, kind):
    """Name and content of a download."""
    with page.expect_download() as download:
        page.click(f"#save_{kind}")
    return download.value.suggested_filename, predict.Path(download.value.path()).read_bytes()


def _check_frame(page, written, stem):
    """What is seen and saved of a frame is what was written."""
    for kind, ending in (("mask", "mask.png"), ("overlay", "overlay.png"), ("tree", "tree.json")):
        name = f"{stem}_{ending}"
        assert _saved(page, kind) == (name, written[name])
    overlay = page.get_attribute("#save_overlay", "href")
    page.expect(page.locator("#overlay")).to_have_attribute("src", overlay)
    tree = json.loads(written[f"{stem}_tree.json"])
    drawn = page.locator("#tree .branch").all()
    points = [" ".join(f"{x:g},{y:g}" for y, x in edge["path"]) for edge in tree["edges"]]
    assert [each.get_attribute("points") for each in drawn] == points
    assert page.locator("#tree circle").count() == len(tree["nodes"])
    units = ["", "_mm"] if tree["spacing_mm"] else [""]
    measures = (("length", 1), ("mean_radius", 2), ("least_radius", 2))
    rows = page.locator("#branches tbody tr").all()
    for row, edge in zip(rows, tree["edges"], strict=True):
        cells = [float(cell) for cell in row.locator("td").all_inner_texts()]
        expected = [(edge[name + unit], digits) for unit in units for name, digits in measures]
        assert cells == [pytest.approx(value, abs=0.51 / 10**digits) for value, digits in expected]
    mask = cv2.imdecode(np.frombuffer(written[f"{stem}_mask.png"], np.uint8), -1)
    page.expect(page.locator("#totals")).to_contain_text(f"{np.count_nonzero(mask)} pixels")
    return mask


def test_a_file_that_is_dropped_is_seen_measured_and_saved(page, served, files, written, tmp_path):
    expect, locator = page.expect, page.locator
    expect(locator("#model")).to_contain_text("Model: step ")
    _drop(page, files / "image.png")
    expect(locator("#status")).to_have_text("Segmented")
    _check_frame(page, written, "image")
    locator("#blend").press("Home")
    expect(locator("#overlay")).to_have_css("opacity", "0")
    locator("#with_tree").press("Space")
    expect(locator("#tree")).to_be_hidden()
    locator("#with_tree").press("Space")
    locator("#branches button").first.focus()
    expect(locator("#tree .chosen")).to_have_attribute("data-branch", "0")

    with page.expect_file_chooser() as chooser:
        locator("#choose").press("Enter")
    chooser.value.set_files(files / "run.dcm")
    expect(locator("#status")).to_have_text("3 frames segmented")
    assert re.findall(r"pixels, 3 frames, 0.2 x 0.3 mm", page.inner_text("#facts"))
    locator("#frame").press("Home")
    expect(locator("#number")).to_have_text("1 of 3")
    locator("#frame").press("ArrowRight")
    expect(locator("#number")).to_have_text("2 of 3")
    _check_frame(page, written, "run_0002")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.said == []

    for name, sentence in _damaged(tmp_path).items():
        _drop(page, tmp_path / name)
        expect(locator("#error")).to_contain_text(re.compile(rf"^{name} .*{sentence}"))
        expect(locator("#result")).to_be_hidden()
    # What Chromium itself says of each answer with this status.
    assert len([each for each in page.said if "status of 400" in each]) == len(page.said) == 5
    _drop(page, files / "image.png")
    expect(locator("#status")).to_have_text("Segmented")
    expect(locator("#error")).to_be_empty()
    assert [url for url in page.asked if not url.startswith((served, "blob:", "data:"))] == []
