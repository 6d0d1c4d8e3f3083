import json
import re
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

import tprnet_jax
from tprnet_jax import evaluate, predict
from tprnet_jax.data import loader, scene, video
from tprnet_jax.runtime import devices
from tprnet_jax.runtime.errors import UserError


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
    assert _names(target) == expected | {"manifest.json"}
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
    assert _names(target) == {"good_mask.png", "good_overlay.png", "manifest.json"}
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
    assert changed == {"b_mask.png", "b_overlay.png", "manifest.json"}
    config.predict.overwrite = True
    predict.run(config, trained[1])
    assert all((target / name).stat().st_mtime_ns != after[name] for name in after)


def test_results_of_another_model_are_not_mixed(trained, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    _write(source, a=("png", 64, 64))
    config = _config(trained, source, target)
    predict.run(config, trained[1])
    config.predict.scale = 1.0
    with pytest.raises(UserError, match=r"what another prediction wrote \(scale 0.0, now 1.0\)"):
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
        ("in/one.png", r"config\.predict\.output=.*one\.png lies in the folder of the images"),
        ("in", r"config\.predict\.output=.* lies in the folder of the images; give another"),
        ("in/deep", r"config\.predict\.output=.* lies in the folder of the images"),
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


def _hostile(folder):
    """Writes files that cannot be segmented; by name, what is to be said of them."""
    folder.mkdir()
    picture = Image.fromarray(scene.draw(0, 1, 64)[0])
    picture.save(folder / "whole.png")
    whole = (folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    contents = {
        "empty.png": b"",
        "text.jpg": b"this is a text",
        "cut.png": whole[:200],
        "zero.dcm": b"",
        "nothing.mp4": b"",
        "words.avi": b"this is a text",
        "no_pixels.dcm": bytes(128) + b"DICM",
        "garbage.tif": bytes(range(256)) * 4,
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    Image.new("L", (1, 1)).save(folder / "dot.png")
    Image.new("L", (500, 20)).save(folder / "flat.png")
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    cv2.imwrite(str(folder / "nan.tif"), np.full((64, 64), np.nan, np.float32))
    said = dict.fromkeys(contents, r"\((0|14|132|200|1024) bytes\) is .*; give a whole|; give")
    return said | {
        "dot.png": "is 1 high and 1 wide; at least 32",
        "flat.png": "is 20 high and 500 wide; at least 32",
        "bomb.png": "is far too large",
        "nan.tif": "replace those that are not finite",
    }


def _odd(folder):
    """Writes files of unusual kinds that can be segmented."""
    picture = Image.fromarray(scene.draw(0, 1, 64)[0])
    for mode in ("RGB", "RGBA", "P", "1", "LA", "I;16"):
        name = mode.replace(";", "")
        picture.convert(mode).save(folder / f"good_{name}.png")
    picture.convert("CMYK").save(folder / "good_CMYK.jpg")
    picture.save(folder / "good_grey.jpg", progressive=True)
    return 8


def test_whatever_is_in_a_folder_the_rest_goes_on(trained, tmp_path, capsys):
    pytest.importorskip("pydicom")
    source, target = tmp_path / "in", tmp_path / "out"
    said = _hostile(source)
    good = _odd(source)
    message = f"{len(said)} of {len(said) + good} files could not be segmented"
    with pytest.raises(UserError, match=message):
        predict.run(_config(trained, source, target), trained[1])
    lines = capsys.readouterr().err.splitlines()
    for name, sentence in said.items():
        (line,) = [line for line in lines if f"/{name}" in line]
        assert re.search(sentence, line), line
    masks = [name for name in _names(target) if name.endswith("_mask.png")]
    assert len(masks) == good
    assert all(name.startswith("good_") or name == "manifest.json" for name in _names(target))


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
    }
    masks = [_mask(target / name) == 255 for name in numbers[:3]]
    for frame, mask in zip(frames, masks, strict=True):
        np.testing.assert_array_equal(mask, tprnet_jax.load(trained[1])(frame).mask)
    stored = highdicom.seg.segread(target / "a_seg.dcm").pixel_array
    np.testing.assert_array_equal(stored == 1, masks)
