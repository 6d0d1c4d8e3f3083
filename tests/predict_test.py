import errno
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import cv2
import html_test
import numpy as np
import pytest
from PIL import Image

import tprnet_jax
from tprnet_jax import evaluate, predict
from tprnet_jax.data import loader, scene, video
from tprnet_jax.report.journal import Journal
from tprnet_jax.runtime import devices
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.signals import Interrupted


def _config(trained, source, target):
    config = trained[0].copy_and_resolve_references()
    config.predict.input, config.predict.output = str(source), str(target)
    return config


def _write(folder, **sizes):
    folder.mkdir(exist_ok=True)
    for name, (suffix, height, width) in sizes.items():
        image = scene.draw(0, len(name), max(height, width))[0][:height, :width]
        cv2.imwrite(str(folder / f"{name}.{suffix}"), image)


def _names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _mask(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_masks_and_overlays_of_any_size_and_format(trained, tmp_path, capsys):
    source, target = tmp_path / "in", tmp_path / "out"
    _write(source, a=("png", 64, 64), bb=("jpg", 70, 53), ccc=("tif", 32, 90), dddd=("BMP", 40, 33))
    _write(source / "deep", e=("png", 64, 64))
    predict.run(_config(trained, source, target), trained[1])
    assert "5 of 5 files segmented" in capsys.readouterr().out
    sizes = {"a": (64, 64), "bb": (70, 53), "ccc": (32, 90), "dddd": (40, 33), "deep/e": (64, 64)}
    expected = {f"{name}_{kind}.png" for name in sizes for kind in ("mask", "overlay")}
    assert _names(target) == expected | {"manifest.json", "report.html"}
    for name, size in sizes.items():
        mask = _mask(target / f"{name}_mask.png")
        assert mask.shape == size
        assert set(np.unique(mask)) <= {0, 255}
        factor = -(-512 // max(size))
        picture = cv2.imread(str(target / f"{name}_overlay.png"))
        assert picture.shape == (size[0] * factor, size[1] * factor, 3)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_mask_is_what_evaluation_scores(trained, tmp_path, batch):
    """Of the data set's own images, with their masks written by the evaluation."""
    config, workdir = trained[0].copy_and_resolve_references(), tmp_path / "run"
    shutil.copytree(trained[1], workdir)
    config.eval.masks = True
    evaluate.run(config, workdir)
    sources = loader.prepare(config.data)["validation"]
    source = tmp_path / "in"
    source.mkdir()
    for index in range(len(sources)):
        name = sources[index]["name"].decode()
        cv2.imwrite(str(source / name), sources[index]["image"])
    config = _config((config,), source, tmp_path / "out")
    config.predict.batch = batch
    predict.run(config, workdir)
    for path in source.iterdir():
        written = _mask(tmp_path / "out" / f"{path.stem}_mask.png")
        np.testing.assert_array_equal(written, _mask(workdir / "eval/validation/masks" / path.name))
        assert 0 < np.count_nonzero(written) < written.size


def test_a_mask_is_what_the_model_gives_in_python(trained, tmp_path):
    source = tmp_path / "in"
    _write(source, one=("png", 100, 80))
    config = _config(trained, source, tmp_path / "out")
    config.predict.outputs = ("mask", "probability")
    predict.run(config, trained[1])
    found = tprnet_jax.load(trained[1])(_mask(source / "one.png"))
    np.testing.assert_array_equal(_mask(tmp_path / "out/one_mask.png") == 255, found.mask)
    probability = _mask(tmp_path / "out/one_probability.png")
    np.testing.assert_array_equal(probability, np.rint(found.probability * 65535))


def test_the_manifest_says_what_was_done(trained, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    _write(source, a=("png", 128, 96))
    (source / "notes.txt").write_text("text")
    config = _config(trained, source, target)
    config.predict.outputs = ("mask", "contours")
    predict.run(config, trained[1])
    manifest = json.loads((target / "manifest.json").read_text())
    assert manifest["model"].startswith("step ")
    assert (manifest["side"], manifest["scale"]) == (64, 0)
    assert manifest["version"] == tprnet_jax.__version__
    (note,) = manifest["notes"]
    assert "1 other files are left out" in note
    assert manifest["files"] == [
        {
            "input": str(source / "a.png"),
            "size": [128, 96],
            "seen": [64, 48],
            "frames": 1,
            "spacing_mm": None,
            "notes": [],
            "outputs": ["a_mask.png", "a_contours.json"],
        }
    ]
    assert {path for file in manifest["files"] for path in file["outputs"]} < _names(target)


def test_an_unreadable_image_is_named_skipped_and_fails_the_run(trained, tmp_path, capsys):
    source, target = tmp_path / "in", tmp_path / "out"
    _write(source, good=("png", 64, 64), tiny=("png", 31, 64))
    (source / "._good.png").write_bytes(b"left by macOS")
    (source / "bad.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"2 of 3 files could not be segmented; each is named"):
        predict.run(_config(trained, source, target), trained[1])
    output = capsys.readouterr()
    assert "bad.png (12 bytes) is damaged or no image" in output.err
    assert "tiny.png is 31 high and 64 wide; at least 32 x 32 pixels are needed" in output.err
    assert "1 of 3 files segmented" in output.out
    masks = {"good_mask.png", "good_overlay.png"}
    assert _names(target) == masks | {"manifest.json", "report.html"}
    files = json.loads((target / "manifest.json").read_text())["files"]
    assert ["error" in file for file in files] == [True, False, True]


def test_what_is_finished_is_not_segmented_again(trained, tmp_path, monkeypatch):
    source, target = tmp_path / "in", tmp_path / "out"
    _write(source, a=("png", 64, 64), b=("png", 64, 64))
    config = _config(trained, source, target)
    predict.run(config, trained[1])
    before = {name: (target / name).stat().st_mtime_ns for name in _names(target)}
    (target / "b_mask.png").unlink()
    predict.run(config, trained[1])
    after = {name: (target / name).stat().st_mtime_ns for name in _names(target)}
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"b_mask.png", "b_overlay.png", "manifest.json", "report.html"}
    config.predict.overwrite = True
    predict.run(config, trained[1])
    assert all((target / name).stat().st_mtime_ns != after[name] for name in after)


def test_outputs_of_another_file_of_the_same_name_are_left_alone(trained, tmp_path, capsys):
    first, second, target = tmp_path / "in1", tmp_path / "in2", tmp_path / "out"
    _write(first, a=("png", 64, 64), b=("png", 64, 64))
    _write(second, a=("png", 80, 64), b=("png", 64, 64))
    (second / "b.png").write_bytes((first / "b.png").read_bytes())
    predict.run(_config(trained, first, target), trained[1])
    before = (target / "a_mask.png").read_bytes()
    config = _config(trained, second, target)
    for _ in range(2):  # The first time does not make it what the second expects.
        with pytest.raises(UserError, match="1 of 2 files could not be segmented"):
            predict.run(config, trained[1])
        said = capsys.readouterr()
        assert f"{second / 'a.png'} is not the file that {target} has outputs of" in said.err
        assert "1 of 2 files segmented" in said.out
        assert "1 of them before" in said.out  # A copy is the same file.
        assert (target / "a_mask.png").read_bytes() == before
    files = json.loads((target / "manifest.json").read_text())["files"]
    assert [file["outputs"] for file in files] == [[], ["b_mask.png", "b_overlay.png"]]
    config.predict.overwrite = True
    predict.run(config, trained[1])
    assert _mask(target / "a_mask.png").shape == (80, 64)
    config.predict.overwrite = False
    predict.run(config, trained[1])
    assert "2 of them before" in capsys.readouterr().out


def test_an_overwriting_that_is_cut_short_leaves_nothing_of_another_model(
    trained, tmp_path, monkeypatch
):
    """What it has not come to is segmented by the next prediction; so is what it failed at."""
    source, target = tmp_path / "in", tmp_path / "out"
    _write(source, **{name: ("png", 64, 64) for name in "abc"})
    config = _config(trained, source, target)
    predict.run(config, trained[1])
    config.model.refinement, config.predict.overwrite = "location_first", True
    enter = Journal.enter

    def interrupted(journal, *given):
        enter(journal, *given)
        raise Interrupted("", signal.SIGTERM)

    monkeypatch.setattr(Journal, "enter", interrupted)
    with pytest.raises(Interrupted):
        predict.run(config, trained[1])
    monkeypatch.undo()
    config.predict.overwrite = False
    predict.run(config, trained[1])
    config.predict.output = str(tmp_path / "alone")
    predict.run(config, trained[1])
    config.predict.output = str(target)
    for name in "abc":
        found, expected = (
            (folder / f"{name}_mask.png").read_bytes() for folder in (target, tmp_path / "alone")
        )
        assert found == expected
    (source / "b.png").write_bytes(b"no image")
    config.predict.overwrite = True
    with pytest.raises(UserError, match="1 of 3 files"):
        predict.run(config, trained[1])
    assert json.loads((target / "manifest.json").read_text())["sha256"].keys() == {"a", "c"}


def test_a_workdir_may_be_spelt_in_another_way(trained, tmp_path, capsys):
    _write(tmp_path / "in", a=("png", 64, 64))
    config = _config(trained, tmp_path / "in", tmp_path / "out")
    predict.run(config, trained[1])
    predict.run(config, Path(os.path.relpath(trained[1])))
    assert "1 of them before" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["a_mask.png", "a_tree.json"])
def test_an_output_that_was_damaged_since_is_no_failure(trained, tmp_path, name):
    """A mask that an editor has saved in colour, a tree that was cut off."""
    target = tmp_path / "out"
    _write(tmp_path / "in", a=("png", 64, 64), b=("png", 64, 64))
    config = _config(trained, tmp_path / "in", target)
    config.predict.outputs = ("mask", "tree")
    predict.run(config, trained[1])
    colour = cv2.imencode(".png", np.full((64, 64, 3), 255, np.uint8))[1].tobytes()
    (target / name).write_bytes(colour if name.endswith("png") else b"{")
    predict.run(config, trained[1])
    page = html_test.data_of((target / "report.html").read_text())
    assert page["names"] == ["a.png", "b.png"]


def test_the_report_also_covers_what_was_done_before(trained, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    _write(source, a=("png", 64, 64), b=("png", 64, 48))
    (source / "bad.png").write_bytes(b"not an image")
    config = _config(trained, source, target)
    config.predict.outputs = ("mask", "tree")
    found = []
    for _ in range(2):
        with pytest.raises(UserError, match="1 of 3 files"):
            predict.run(config, trained[1])
        found.append(html_test.data_of((target / "report.html").read_text()))
        (target / "b_tree.json").unlink()
    first, again = found
    assert first["names"] == again["names"] == ["a.png", "b.png", "bad.png"]
    assert first["pictures"].keys() == {"0", "1"}
    assert again["pictures"] == first["pictures"]
    area, status, branches = (
        [column["name"] for column in first["columns"]].index(name)
        for name in ("area", "status", "branches")
    )
    rows, later = (page["values"]["mask"] for page in found)
    assert [row[status] for row in rows] == ["segmented", "segmented", "failed"]
    assert [row[status] for row in later] == ["done before", "segmented", "failed"]
    share = 100 * np.mean(_mask(target / "a_mask.png") > 0)
    assert rows[0][area] == later[0][area] == pytest.approx(share, rel=1e-5)
    tree = json.loads((target / "a_tree.json").read_text())
    assert rows[0][branches] == later[0][branches] == len(tree["edges"])
    (problem,) = first["notes"]
    assert "bad.png (12 bytes) is damaged or no image" in problem


@pytest.mark.parametrize(
    ("part", "field", "value", "change"),
    [
        ("predict", "scale", 1.0, "scale 0.0, now 1.0"),
        ("model", "temperature", 2.0, "temperature 1.0, now 2.0"),
        ("model", "refinement", "location_first", "another step [36] of .*"),
    ],
)
def test_results_of_another_model_are_not_mixed(trained, tmp_path, part, field, value, change):
    source, target = tmp_path / "in", tmp_path / "out"
    _write(source, a=("png", 64, 64))
    config = _config(trained, source, target)
    predict.run(config, trained[1])
    config[part][field] = value
    with pytest.raises(UserError, match=rf"what another prediction wrote \({change}\)"):
        predict.run(config, trained[1])
    config.predict.overwrite = True
    predict.run(config, trained[1])


def test_an_image_too_large_for_the_memory_is_named_and_the_rest_goes_on(
    trained, tmp_path, monkeypatch, capsys
):
    source, target = tmp_path / "in", tmp_path / "out"
    _write(source, large=("png", 200, 200), small=("png", 64, 64))
    config = _config(trained, source, target)
    config.predict.scale = 1.0
    # 20 * 2 channels * 4 bytes... of GlobalNet, and 64: 104 bytes a pixel.
    monkeypatch.setattr(devices, "free_bytes", lambda: 104 * 200 * 200 - 1)
    with pytest.raises(UserError, match="1 of 2 files"):
        predict.run(config, trained[1])
    assert "large.png would be segmented at 200 x 200" in capsys.readouterr().err
    assert "small_mask.png" in _names(target)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("", r"config\.predict\.output is empty"),
        (
            "in/one.png",
            r"config\.predict\.output=.*one\.png would write to the folder of the images",
        ),
        ("in", r"config\.predict\.output=.* would write to the folder of the images; give another"),
        ("in/deep", r"config\.predict\.output=.* would write to the folder of the images"),
        ("file/out", r"config\.predict\.output=.*out cannot be written to"),
    ],
)
def test_an_output_that_cannot_be_used_is_named(trained, tmp_path, output, message):
    _write(tmp_path / "in", one=("png", 64, 64))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=message):
        predict.run(_config(trained, tmp_path / "in", output and tmp_path / output), trained[1])


def test_an_unknown_output_is_named(trained, tmp_path):
    _write(tmp_path / "in", one=("png", 64, 64))
    config = _config(trained, tmp_path / "in", tmp_path / "out")
    config.predict.outputs = ("mask", "masks")
    with pytest.raises(UserError, match=r"outputs is 'mask,masks'; choose among mask, prob"):
        predict.run(config, trained[1])


def test_a_run_without_checkpoint_is_named(trained, tmp_path):
    source = tmp_path / "in"
    _write(source, one=("png", 64, 64))
    with pytest.raises(UserError, match="there is no checkpoint"):
        predict.run(_config(trained, source, tmp_path / "out"), tmp_path / "absent")
    assert not (tmp_path / "out").exists()


def test_a_model_other_than_the_trained_one_is_said(trained, tmp_path, caplog):
    source = tmp_path / "in"
    _write(source, one=("png", 64, 64))
    config = _config(trained, source, tmp_path / "out")
    config.model.window = 40
    predict.run(config, trained[1])
    assert "config.model.window is 40, but was 48 in training" in caplog.text


# ---- Files of all kinds --------------------------------------------------------------------------

ANY_NAMES = sys.platform != "darwin"  # Its file systems have names in UTF-8 alone.


def _damaged(folder):
    """Writes what is cut or no image at all; by name, what is to be said of it."""
    whole = {}
    picture = Image.fromarray(scene.draw(0, 1, 64)[0])
    for name in ("a.png", "a.jpg", "a.tif", "a.bmp"):
        picture.save(folder / name)
        whole[name[1:]] = (folder / name).read_bytes()
        (folder / name).unlink()
    video.write_video(folder / "a.mp4", [np.zeros((64, 64, 3), np.uint8)] * 3, 15)
    whole[".mp4"] = (folder / "a.mp4").read_bytes()
    (folder / "a.mp4").unlink()
    noise = np.random.default_rng(0).bytes(3000)
    contents = {
        f"half_{suffix[1:]}{suffix}": content[: len(content) // 2]
        for suffix, content in whole.items()
    }
    contents |= {f"empty_{suffix[1:]}{suffix}": b"" for suffix in (".png", ".dcm", ".mkv")}
    contents |= {f"noise_{suffix[1:]}{suffix}": noise for suffix in whole}
    contents |= {
        "text.jpg": b"this is a text",
        "words.avi": b"this is a text",
        "noframes.mp4": whole[".mp4"][:40],
        "noise.dcm": noise,
        "picture.dcm": whole[".png"],
        "only_mark.dcm": bytes(128) + b"DICM",
        "two\nlines.png": b"no image",
        "späce and ünicode.png": b"no image",
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return dict.fromkeys(contents, r"\(\d+ bytes\) is .*; give a whole")


def _of_wrong_size_or_values(folder):
    """Writes images that are too small, too large or not finite; what is to be said of each."""
    Image.new("L", (1, 1)).save(folder / "dot.png")
    Image.new("L", (500, 20)).save(folder / "flat.png")
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    Image.new("1", (9000, 9000)).save(folder / "large.png")
    cv2.imwrite(str(folder / "nan.tif"), np.full((64, 64), np.nan, np.float32))
    cv2.imwrite(str(folder / "infinite.tif"), np.full((64, 64), np.inf, np.float32))
    return {
        "dot.png": "is 1 high and 1 wide; at least 32",
        "flat.png": "is 20 high and 500 wide; at least 32",
        "bomb.png": "is far too large",
        "large.png": "has 9000 x 9000 pixels, more than",
        "nan.tif": "replace those that are not finite",
        "infinite.tif": "replace those that are not finite",
    }


def _no_files(folder):
    """Makes links, pipes and folders that are named like images; what is to be said of each."""
    (folder / "broken.png").symlink_to(folder / "gone.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "folder.png").mkdir()  # Is searched, and has nothing.
    (folder / "linked.png").symlink_to(folder / "folder.png")
    return {
        "broken.png": r"\(No such file",
        "circle.png": r"\(Too many levels",
        "pipe.png": "is a folder, a pipe or the like",
        "linked.png": "is a folder, a pipe or the like",
    }


def _of_names(folder):
    """Writes good images whose names will not do; what is to be said of each."""
    picture = Image.fromarray(scene.draw(0, 1, 64)[0])
    for name in ("twice.png", "twice.jpg", "run_0001.png", f"{'x' * 250}.png"):
        picture.save(folder / name)
    return {
        "twice.png": "would write twice_mask.png, and so would another",
        "twice.jpg": "would write twice_mask.png, and so would another",
        "run_0001.png": r"would write run_0001_mask.png, and so does .*run\.mp4; rename one",
        f"{'x' * 250}.png": "a name of more than the 255 bytes",
    }


def _of_dicom(folder):
    """Writes DICOM files without usable pixels; what is to be said of each."""
    import dicom_test
    from pydicom import uid

    pixels = np.stack([scene.draw(0, index, 64)[0] for index in range(3)])

    def save(name, data=None, **elements):
        data = data or dicom_test.data_set(pixels, **elements)
        data.save_as(folder / name, implicit_vr=False, little_endian=True, enforce_file_format=True)

    bare = dicom_test.data_set(pixels)
    del bare.PixelData
    save("bare.dcm", bare)
    for name, syntax in (("mpeg.dcm", uid.MPEG4HP41), ("private.dcm", "1.2.3.4")):
        coded = [b"\0" * 100] * 3
        save(name, dicom_test.encapsulated(dicom_test.data_set(pixels), coded, syntax))
    save("vast.dcm", Rows=20000, Columns=20000)
    save("whole.dcm")
    content = (folder / "whole.dcm").read_bytes()
    (folder / "whole.dcm").unlink()
    (folder / "short.dcm").write_bytes(content[: len(content) * 2 // 3])
    return {
        "bare.dcm": "has no pixel data; give an angiogram",
        "mpeg.dcm": r"cannot be decoded \(.*MPEG-4.*or convert it",
        "private.dcm": r"cannot be decoded \(.*1\.2\.3\.4.*or convert it",
        "vast.dcm": "has 20000 x 20000 pixels, more than",
        "short.dcm": r"cannot be decoded \(.*give a whole copy",
    }


def _hostile(folder):
    """Fills a folder with what cannot be segmented; by name, what is to be said of it."""
    folder.mkdir()
    said = _damaged(folder) | _of_wrong_size_or_values(folder) | _no_files(folder)
    said |= _of_names(folder) | _of_dicom(folder)
    if not ANY_NAMES:
        return said
    name = os.fsdecode(b"latin\xff.mp4")
    (folder / name).write_bytes(b"whatever")
    return said | {name: "is not UTF-8; rename it"}


def _odd(folder):
    """Writes files of unusual kinds that can be segmented, 3 images of a video among them."""
    picture = Image.fromarray(scene.draw(0, 1, 64)[0])
    for mode in ("RGB", "RGBA", "P", "1", "LA", "I;16"):
        name = mode.replace(";", "")
        picture.convert(mode).save(folder / f"good_{name}.png")
    picture.convert("CMYK").save(folder / "good_CMYK.jpg")
    picture.save(folder / "good_grey.jpg", progressive=True)
    picture.save(folder / "good_volume.tif", save_all=True, append_images=[picture] * 2)
    picture.save(folder / os.fsdecode(b"good_\xff.png" if ANY_NAMES else b"good_.png"))
    Image.new("L", (4000, 32), 90).save(folder / "good_long.png")
    frame = np.asarray(picture)[..., None].repeat(3, axis=2)
    video.write_video(folder / "run.mp4", [frame] * 3, 15)


def _opens(path):
    """Whether a file that was written is whole."""
    if path.suffix == ".mp4":
        return video.open_video(path).count == 3
    if path.suffix == ".json":
        return bool(json.loads(path.read_text()))
    if path.suffix == ".html":
        return bool(html_test.data_of(path.read_text()))
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED) is not None


def test_whatever_is_in_a_folder_the_rest_goes_on(trained, tmp_path, capfd):
    pytest.importorskip("pydicom")
    source, target = tmp_path / "in", tmp_path / "out"
    said = _hostile(source)
    assert len(said) >= 40
    _odd(source)
    config = _config(trained, source, target)
    config.predict.outputs = ("mask", "contours", "video")
    message = f"{len(said)} of {len(said) + 12} files could not be segmented"
    with pytest.raises(UserError, match=message):
        predict.run(config, trained[1])
    lines = [line.strip() for line in re.split(r"[\r\n]", capfd.readouterr().err)]
    lines = [x for x in lines if x and not x.startswith(("predict:", "The first image of"))]
    assert all(str(source) in line for line in lines)
    for name, sentence in said.items():
        legible = "".join(x if x.isprintable() else "?" for x in name)
        (line,) = [line for line in lines if f"{source}/{legible} " in line]
        assert re.search(sentence, line), line
    written = _names(target)
    assert len([name for name in written if name.endswith("_mask.png")]) == 14
    assert len(written) == 2 * 14 + 1 + 2  # Contours too, the video, the manifest and the report.
    assert all(_opens(target / name) for name in written)
    files = json.loads((target / "manifest.json").read_text())["files"]
    assert sum("error" in file for file in files) == len(said) - 2  # Two have one name.


def test_a_full_disk_ends_the_run_with_one_sentence_and_whole_files(
    trained, tmp_path, monkeypatch, capsys
):
    source, target = tmp_path / "in", tmp_path / "out"
    _write(source, **{name: ("png", 64, 64) for name in "abcdefgh"})
    write, written = Path.write_bytes, []

    def until_full(path, content):
        write(path, content[: len(content) // 2])  # As much as there is space for.
        if "partial" in path.name and len(written) >= 7:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", until_full)
    sentence = rf"cannot write {target}/\w_(mask|overlay)\.png \(No space left on device\); choose"
    with pytest.raises(UserError, match=sentence):
        predict.run(_config(trained, source, target), trained[1])
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.undo()
    assert not [name for name in _names(target) if "partial" in name]
    assert all(_opens(target / name) for name in _names(target))
    predict.run(_config(trained, source, target), trained[1])
    assert len(_names(target)) == 2 * 8 + 2


def test_what_is_interrupted_says_that_the_same_command_goes_on(trained, tmp_path, monkeypatch):
    def interrupted(*_):
        raise Interrupted("", signal.SIGTERM)

    _write(tmp_path / "in", a=("png", 64, 64))
    monkeypatch.setattr(predict.inputs, "open_angiogram", interrupted)
    with pytest.raises(Interrupted, match="the same command goes on with the rest") as interrupt:
        predict.run(_config(trained, tmp_path / "in", tmp_path / "out"), trained[1])
    assert interrupt.value.status == 128 + signal.SIGTERM


def test_an_image_that_gives_none_of_the_outputs_is_named(trained, tmp_path, capsys):
    _write(tmp_path / "in", one=("png", 64, 64))
    config = _config(trained, tmp_path / "in", tmp_path / "out")
    config.predict.outputs = ("seg", "video")
    with pytest.raises(UserError, match="1 of 1 files could not be segmented"):
        predict.run(config, trained[1])
    sentence = "one.png has none of config.predict.outputs=seg,video (seg is of DICOM alone"
    assert sentence in capsys.readouterr().err


def test_a_file_where_a_folder_is_needed_is_named_and_the_rest_goes_on(trained, tmp_path, capsys):
    source, target = tmp_path / "in", tmp_path / "out"
    _write(source, one=("png", 64, 64))
    _write(source / "deep", two=("png", 64, 64))
    target.mkdir()
    (target / "deep").write_text("")
    with pytest.raises(UserError, match="1 of 2 files could not be segmented"):
        predict.run(_config(trained, source, target), trained[1])
    assert f"cannot make the folder {target / 'deep'} (File exists)" in capsys.readouterr().err
    assert "one_mask.png" in _names(target)


def test_a_manifest_of_something_else_is_not_replaced(trained, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    _write(source, one=("png", 64, 64))
    target.mkdir()
    (target / "manifest.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"what another prediction wrote \(model None, now step"):
        predict.run(_config(trained, source, target), trained[1])
    assert (target / "manifest.json").read_text() == "[1, 2]"


def test_a_run_of_frames_in_dicom_and_in_a_video(trained, tmp_path):
    """Every frame's mask is that of its picture, and the SEG has them all."""
    highdicom = pytest.importorskip("highdicom")
    import dicom_test

    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    frames = np.stack([scene.draw(0, index, 64)[0] for index in range(3)])
    dicom_test.save(source / "a.dcm", dicom_test.data_set(frames))
    video.write_video(source / "b.mp4", [f[..., None].repeat(3, axis=2) for f in frames], 15)
    config = _config(trained, source, target)
    config.predict.outputs = ("mask", "seg", "video")
    predict.run(config, trained[1])
    numbers = [f"{name}_000{n}_mask.png" for name in "ab" for n in (1, 2, 3)]
    assert _names(target) == {
        *numbers,
        "a_seg.dcm",
        "a_overlay.mp4",
        "b_overlay.mp4",
        "manifest.json",
        "report.html",
    }
    masks = [_mask(target / name) == 255 for name in numbers[:3]]
    for frame, mask in zip(frames, masks, strict=True):
        np.testing.assert_array_equal(mask, tprnet_jax.load(trained[1])(frame).mask)
    stored = highdicom.seg.segread(target / "a_seg.dcm").pixel_array
    np.testing.assert_array_equal(stored == 1, masks)
