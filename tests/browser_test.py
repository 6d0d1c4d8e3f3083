"""The pages in a browser, as a user meets them: from a file, without network."""

import shutil

import html_test
import numpy as np
import pytest

from tprnet_jax.report import html, palette, pictures
from tprnet_jax.report.curves import Plot

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to open pages in")

NAMES = ["b.png", "a.png", "<b>c.png"]
DICE = [0.5, 0.9, 0.75]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page 390 pixels wide; what it complains of or asks for fails the test."""
    context = browser.new_context(viewport={"width": 390, "height": 800}, offline=True)
    complaints = []

    def said(message):
        if message.type == "error":
            complaints.append(message.text)

    def watched(text):
        path = tmp_path / "report.html"
        path.write_text(text)
        page = context.new_page()
        page.on("console", said)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url))
        page.goto(path.as_uri())
        page.wait_for_function("document.querySelector('#legend li')")
        complaints[:] = [x for x in complaints if x != path.as_uri() and not x.startswith("data:")]
        return page

    yield watched
    context.close()
    assert complaints == []


def _evaluation():
    """Three images of 8 x 8: truth on rows 2 and 3, prediction on columns 2 and 3."""
    truth, prediction = np.zeros((2, 8, 8), bool)
    truth[2:4] = True
    prediction[:, 2:4] = True
    masks = {"truth": truth, "global": ~prediction, "final": prediction}
    shown = pictures.encode(np.full((8, 8), 0.5), masks)
    rows = [{"dice": dice, "asd": None if dice > 0.8 else 10 * dice} for dice in DICE]
    scores = html_test.scores(NAMES)._replace(rows={"global": rows[::-1], "final": rows})
    result = html_test.result(interval={"final": {"dice": [0.4, 0.6]}}, images=3)
    plots = [Plot("Loss", {"loss": [(1, 0.5), (2, 0.25)]})]
    return html.evaluation(
        result, scores, dict.fromkeys((0, 1), shown), plots, {"T": {"a": "b"}}, ""
    )


def _names(page):
    return page.locator(".images tbody th").all_inner_texts()


def _pixel(page, column, row):
    script = "([x, y]) => [...picture.getContext('2d').getImageData(x, y, 1, 1).data].slice(0, 3)"
    return page.evaluate(script, [column, row])


def _press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def test_an_evaluation_by_keyboard_on_a_phone(opened):
    page = opened(_evaluation())
    assert page.title() == "TPRNet: test, 3 images"
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert "0.400 \u2013 0.600" in page.locator("#means").inner_text()
    assert page.locator("#histograms svg").count() == 2
    assert page.locator("#curves polyline").count() == 1
    # A page that is left has no width, which no chart must take for one to draw at.
    page.evaluate("main => { main.hidden = true; main.offsetWidth; }", page.query_selector("main"))
    page.evaluate("() => new Promise(done => setTimeout(done, 50))")
    page.evaluate("main => { main.hidden = false; }", page.query_selector("main"))
    # The worst first, and its errors.
    assert _names(page) == ["b.png", "<b>c.png", "a.png"]
    assert page.locator("[aria-current]").inner_text().startswith("b.png")
    assert _pixel(page, 2, 2) == list(palette.TRUE_POSITIVE)
    assert _pixel(page, 2, 6) == list(palette.FALSE_POSITIVE)
    assert _pixel(page, 6, 2) == list(palette.FALSE_NEGATIVE)
    assert _pixel(page, 6, 6) == [77, 77, 77]  # 0.6 of 128.
    page.focus("#layer")
    _press(page, "Home")
    assert page.locator("#layer").get_attribute("aria-valuetext") == "Angiogram"
    assert _pixel(page, 2, 2) == [128, 128, 128]
    _press(page, *["ArrowRight"] * 10)
    assert page.locator("#layer").get_attribute("aria-valuetext") == "Truth"
    assert _pixel(page, 6, 1) == list(palette.TRUTH)  # The outline, above the truth.
    # By ASD, falling; what is not defined stays last.
    header = page.get_by_role("button", name="ASD", exact=True)
    header.focus()
    _press(page, "Enter", "Enter")
    heads = page.locator(".images thead th")
    assert heads.nth(2).get_attribute("aria-sort") == "descending"
    assert heads.nth(1).get_attribute("aria-sort") == "none"
    assert _names(page) == ["<b>c.png", "b.png", "a.png"]
    # One tab further are the rows, of which the chosen one is the second.
    _press(page, "Tab", "ArrowDown")
    assert page.evaluate("document.activeElement.textContent") == "a.png"
    assert page.locator("#caption").inner_text() == "a.png · Final · Dice 0.9000"
    _press(page, "Home")
    page.wait_for_selector("#absent")
    assert "pictures of 2 of 3 images" in page.locator("#absent").inner_text()
    page.get_by_label("Global", exact=True).check()
    assert page.locator("#caption").inner_text() == "<b>c.png · Global · Dice 0.5000 · ASD 5.00"


def test_a_prediction_in_the_dark(opened):
    mask = np.zeros((8, 8), bool)
    mask[2:4] = True
    shown = pictures.encode(np.full((8, 8), 0.5), {"mask": mask})
    files = [html_test.record("a.png"), {"input": "in/bad.png", "error": "bad.png is damaged"}]
    entries = [html_test.entry("in/a.png", picture=shown)]
    page = opened(html_test.predicted(files, entries))
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(background) != light
    assert _pixel(page, 6, 1) == list(palette.PREDICTION)
    # A quarter of the way from the grey 128 to the orange (230, 159, 0).
    assert np.abs(np.subtract(_pixel(page, 6, 2), (153.5, 135.75, 96))).max() < 2
    page.locator("#next").click()
    assert page.locator("#absent").inner_text() == "bad.png is damaged"
    assert page.locator("#summary").is_hidden()
