"""The file of --mode=export: what it finds without this package, and what it is."""

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import cv2
import jax
import jax.export
import numpy as np
import pytest

import tprnet_jax
from tprnet_jax import export, fields
from tprnet_jax.data import scene
from tprnet_jax.method.cascade import param_shapes
from tprnet_jax.models.umamba import UMamba
from tprnet_jax.runtime.errors import UserError

README = (Path(__file__).parents[1] / "configs" / "README.md").read_text()


@pytest.fixture
def config(trained, tmp_path):
    config = trained[0].copy_and_resolve_references()
    config.export.output = str(tmp_path / "tprnet.stablehlo")
    return config


@pytest.fixture(scope="module")
def model(trained):
    return tprnet_jax.load(trained[1])._replace(temperature=1.5)


@pytest.fixture(scope="module")
def content(trained, tmp_path_factory):
    """Of a file whose chunks are larger than the 64 patches that an image can have."""
    pytest.importorskip("flatbuffers", reason='needs flatbuffers: pip install -e ".[export]"')
    config = trained[0].copy_and_resolve_references()
    config.model.chunk, config.model.temperature = 100, 1.5
    path = tmp_path_factory.mktemp("exported") / "tprnet.stablehlo"
    config.export.output = str(path)
    export.run(config, trained[1])
    return path.read_bytes()


def test_the_python_of_the_readme_finds_the_same_without_this_package(model, content, tmp_path):
    image = scene.draw(0, 5, 64)[0]
    cv2.imwrite(str(tmp_path / "angiogram.png"), image)
    (tmp_path / "tprnet.stablehlo").write_bytes(content)
    (example,) = re.findall(r"```python\n([^`]*deserialize[^`]*)```", README)
    alone = "import sys\nsys.modules['tprnet_jax'] = None\n" + example.replace("512", "64")
    subprocess.run([sys.executable, "-c", alone], cwd=tmp_path, check=True)
    found = cv2.imread(str(tmp_path / "mask.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(found, 255 * model(image).mask)
    assert 0 < found.mean() < 128


def test_one_file_takes_any_number_of_images_of_any_size(model, content):
    """Of sides that the strides do not divide, one of them shorter than the window of 48."""
    images = np.random.default_rng(0).random((3, 67, 37), np.float32)
    mask, probability = jax.export.deserialize(bytearray(content)).call(images)
    expected = model(images, scale=1)
    assert (mask.dtype, probability.dtype) == (bool, np.float32)
    np.testing.assert_array_equal(mask, expected.mask)
    np.testing.assert_allclose(probability, expected.probability, atol=1e-6)


def test_the_file_is_for_every_platform_and_says_what_it_holds(content, trained):
    exported = jax.export.deserialize(bytearray(content))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert re.fullmatch(r"step \d+ of run, images of 64 pixels", exported.fun_name)
    assert str(exported.in_avals[0]) == "float32[batch,height,width]"
    with pytest.raises(ValueError) as error:
        exported.call(np.zeros((1, 31, 64), np.float32))
    assert "height >= 32" in str(error.value.__cause__)


def test_the_file_names_no_place_of_the_machine_it_was_made_on(content, trained):
    for place in (trained[1], Path(tprnet_jax.__file__).parent, Path(jax.__file__).parent):
        assert str(place).encode() not in content


def test_half_precision_is_kept_where_it_loses_nothing():
    exact, rounded = np.array([1, 1 - 2**-11], np.float32), np.array([0.1], np.float32)
    kept = export._as_small(exact)
    assert kept.dtype == np.float16
    np.testing.assert_array_equal(kept, exact)
    assert export._as_small(rounded) is rounded


def _refused(config, workdir, sentence):
    with pytest.raises(UserError, match=sentence):
        export.run(config, workdir)
    assert not Path(config.export.output).is_file()


def test_a_file_is_asked_for(config, trained):
    config.export.output = ""
    _refused(config, trained[1], r"config\.export\.output is empty; give the file to write")


def test_a_workdir_without_a_checkpoint_is_named(config, tmp_path):
    pytest.importorskip("flatbuffers")
    _refused(config, tmp_path / "empty", "there is no checkpoint in .*empty")


def test_a_file_that_cannot_be_written_is_named(config, trained, tmp_path, monkeypatch):
    pytest.importorskip("flatbuffers")
    monkeypatch.setattr(export, "exported", lambda *_: jax.export.export(jax.jit(abs))(1.0))
    config.export.output = str(tmp_path / "absent" / "a.stablehlo")
    _refused(config, trained[1], r"cannot write .*absent/a\.stablehlo \(No such file or directory")


def test_the_released_rules_have_no_place_on_the_device(config, trained):
    config.model.first_point = "random"
    _refused(
        config,
        trained[1],
        r"--mode=export puts .* on the device, which has no model\.first_point='random', only "
        r"'centroid'; segment with this model by --mode=predict",
    )


@pytest.mark.parametrize("shape", [(512, 512), (0, 64, 64), (1, 31, 64), (1, 64.0, 64), ("any",)])
def test_shapes_of_no_images_are_named(config, trained, shape):
    config.export.shape = shape
    _refused(config, trained[1], r"config\.export\.shape is \(.*; give the number of images")


@pytest.mark.parametrize("net", ["coanet", "umamba_bot"])
def test_networks_whose_operations_depend_on_the_size_ask_for_it(config, trained, net):
    config.model.global_net = net
    config.model.global_channels = fields.FIELDS["model"]["global_channels"]
    _refused(config, trained[1], "shape is empty, but (CoANet|UMamba) can only be exported for")


def test_a_shape_that_is_given_is_the_only_one(model):
    """Of tokens, whose number U-Mamba must know."""
    cascade = dataclasses.replace(
        model.cascade, global_net=UMamba((1, 2)), local_net=None, focal_net=None
    )
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), param_shapes(cascade))
    alone = model._replace(cascade=cascade, params=params)
    assert export.exported(alone, "tokens", (2, 33, 40)).in_avals[0].shape == (2, 33, 40)


def test_without_flatbuffers_the_extra_is_named(config, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    _refused(
        config, trained[1], r'needs flatbuffers; install it with pip install -e "\.\[export\]"'
    )
