import cv2
import numpy as np
import pytest

from tprnet_jax import config as configuration
from tprnet_jax import predict
from tprnet_jax.data import scene
from tprnet_jax.method import inference
from tprnet_jax.method.cascade import param_shapes
from tprnet_jax.runtime import checkpoints
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


def test_masks_and_overlays_of_any_size_and_format(trained, tmp_path, capsys):
    source, target = tmp_path / "in", tmp_path / "out"
    _write(source, a=("png", 64, 64), bb=("jpg", 70, 53), ccc=("tif", 31, 90), dddd=("BMP", 20, 12))
    predict.run(_config(trained, source, target), trained[1])
    assert "4 of 4 images segmented" in capsys.readouterr().out
    sizes = {"a": (64, 64), "bb": (70, 53), "ccc": (31, 90), "dddd": (20, 12)}
    expected = {f"{name}_{kind}.png" for name in sizes for kind in ("mask", "overlay")}
    assert {p.name for p in target.iterdir()} == expected
    for name, size in sizes.items():
        mask = cv2.imread(str(target / f"{name}_mask.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == size
        assert set(np.unique(mask)) <= {0, 255}
        assert cv2.imread(str(target / f"{name}_overlay.png")).shape == (*size, 3)


def test_a_mask_is_what_evaluation_scores(trained, tmp_path):
    config, workdir = trained
    source = tmp_path / "in"
    _write(source, one=("png", 64, 64))
    predict.run(_config(trained, source / "one.png", tmp_path / "out"), workdir)
    cascade = configuration.cascade(config)
    params, _ = checkpoints.restore_params(workdir, "best", param_shapes(cascade))
    image = cv2.imread(str(source / "one.png"), cv2.IMREAD_UNCHANGED)[..., None]
    ((_, masks),) = inference.segment_examples(cascade, params, [{"image": image}], batch=1)
    written = cv2.imread(str(tmp_path / "out/one_mask.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(written == 255, masks["final"])


def test_an_unreadable_image_is_named_skipped_and_fails_the_run(trained, tmp_path, capsys):
    source, target = tmp_path / "in", tmp_path / "out"
    _write(source, good=("png", 64, 64))
    (source / "._good.png").write_bytes(b"left by macOS")
    (source / "bad.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"1 of 2 images could not be read: bad\.png"):
        predict.run(_config(trained, source, target), trained[1])
    assert "bad.png" in capsys.readouterr().err
    assert {p.name for p in target.iterdir()} == {"good_mask.png", "good_overlay.png"}


def test_two_images_of_one_name_are_refused_before_anything_is_written(trained, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    _write(source, same=("png", 16, 16))
    _write(source, same=("jpg", 16, 16))
    with pytest.raises(UserError, match=r"same\.jpg, same\.png in .* would all write same_mask"):
        predict.run(_config(trained, source, target), trained[1])
    assert not target.exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", r"config\.predict\.input is empty"),
        ("absent", r"config\.predict\.input=.*absent does not exist"),
        (".", r"config\.predict\.input=.* has no \.png"),
        ("one.dcm", r"config\.predict\.input=.*one\.dcm is none of \.png.*; convert it"),
    ],
)
def test_inputs_that_cannot_be_used_are_named(tmp_path, given, message):
    (tmp_path / "one.dcm").write_bytes(b"DICM")
    with pytest.raises(UserError, match=message):
        predict.find_images(given and str(tmp_path / given))


def test_an_output_that_cannot_be_made_is_named(trained, tmp_path):
    source = tmp_path / "in"
    _write(source, one=("png", 16, 16))
    for output, message in (
        ("", r"config\.predict\.output is empty"),
        (source / "one.png", r"config\.predict\.output=.*one\.png cannot be made"),
        (source, r"config\.predict\.output=.* is the folder of the images; give another"),
    ):
        with pytest.raises(UserError, match=message):
            predict.run(_config(trained, source, output), trained[1])


def test_a_run_without_checkpoint_leaves_no_output_folder(trained, tmp_path):
    source = tmp_path / "in"
    _write(source, one=("png", 16, 16))
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
