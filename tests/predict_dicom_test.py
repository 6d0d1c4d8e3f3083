"""DICOM files through the whole of --mode=predict: those of pydicom, and runs in all encodings."""

import json
import re
import shutil
import warnings

import cv2
import numpy as np
import pytest

from tprnet_jax import predict
from tprnet_jax.data import scene, video
from tprnet_jax.runtime.errors import UserError

pytest.importorskip("pydicom")
import dicom_test
from dicom_test import BUNDLED, highdicom, pydicom, uid

SIZE = 64


def _config(trained, source, target, *outputs):
    config = trained[0].copy_and_resolve_references()
    config.predict.input, config.predict.output = str(source), str(target)
    config.predict.outputs = outputs
    return config


def _manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def _image(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def test_every_file_of_pydicom_gives_masks_or_one_sentence(trained, tmp_path, capfd):
    """None more is said of it by pydicom, its decoders or Python."""
    source, target = tmp_path / "in", tmp_path / "out"
    shutil.copytree(BUNDLED / "test_files", source)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(UserError, match=r"files could not be segmented; each is named above"):
            predict.run(_config(trained, source, target, "mask"), trained[1])
    assert [str(each.message) for each in warned] == []
    manifest = _manifest(target)
    assert manifest["problems"] == []
    assert not [file for file in manifest["files"] if "DICOMDIR" in file["input"]]
    failed = [file for file in manifest["files"] if "error" in file]
    done = [file for file in manifest["files"] if "error" not in file]
    for file in done:
        assert len(file["outputs"]) == file["frames"]
        for name in file["outputs"]:
            assert list(_image(target / name).shape) == file["size"]
    assert all(file["input"] in file["error"] for file in failed)
    said = [line.strip() for line in re.split(r"[\r\n]", capfd.readouterr().err)]
    said = [x for x in said if x and not x.startswith(("predict:", "The first image of"))]
    notes = {note for file in manifest["files"] for note in file.get("notes", ())}
    sentences = [file["error"] for file in failed] + manifest["notes"]
    assert sorted(line for line in said if line not in notes) == sorted(sentences)
    assert {note for file in done for note in file["notes"]} <= set(said)
    assert len(done) >= 40  # Of pydicom 3.0.2: 47 and 112.
    assert len(failed) >= 100


SYNTAXES = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEG2000Lossless,
    uid.JPEGLSLossless,
)
WINDOW = {"WindowCenter": 0.4, "WindowWidth": 0.7}  # Times the largest stored value.
# Bits, kind, and what maps the stored values to those that are seen.
CASES = (
    (8, "MONOCHROME1", "window"),
    (8, "MONOCHROME2", "lut"),
    (12, "MONOCHROME1", "lut"),
    (12, "MONOCHROME2", "window"),
    (16, "MONOCHROME1", "window"),
    (16, "MONOCHROME2", "lut"),
)


def _run(bits, kind, mapping, number):
    """A run of two synthetic angiograms whose instance has this number."""
    seen = np.stack([scene.draw(0, index, SIZE)[0] for index in range(2)])
    seen = 255 - seen if kind == "MONOCHROME1" else seen
    pixels = (seen.astype(np.uint16) << (bits - 8)) if bits > 8 else seen
    high = 2**bits - 1
    elements = {key: round(share * high) for key, share in WINDOW.items()}
    if mapping == "lut":
        table = dicom_test.item(LUTDescriptor=[2**8, 0, 16] if bits == 8 else [2**12, 0, 16])
        table["LUTDescriptor"].VR = "US"
        entries = np.linspace(0, 1, table.LUTDescriptor[0]) ** 0.8 * 65535
        table.LUTData = entries.astype("<u2").tobytes()
        table["LUTData"].VR = "OW"
        elements = {"VOILUTSequence": [table]}
    data = dicom_test.data_set(pixels, kind, bits, **elements)
    data.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.77.{number}"
    return data


def _encoded(data, syntax):
    if syntax == uid.JPEGBaseline8Bit:
        coded = [cv2.imencode(".jpg", frame)[1].tobytes() for frame in data.pixel_array]
        return dicom_test.encapsulated(data, coded, syntax)
    if syntax.is_encapsulated:
        data.compress(syntax, generate_instance_uid=False)
    data.file_meta.TransferSyntaxUID = syntax
    return data


@pytest.fixture(scope="module")
def in_all_encodings(trained, tmp_path_factory):
    """The folder of the sources and that of all outputs, each of CASES in each of SYNTAXES."""
    folder = tmp_path_factory.mktemp("encodings")
    source, target = folder / "in", folder / "out"
    for number, case in enumerate(CASES):
        lossy = [uid.JPEGBaseline8Bit] if case[0] == 8 else []
        for place, syntax in enumerate([*SYNTAXES, *lossy]):
            path = source / str(number) / f"{syntax.keyword}.dcm"
            path.parent.mkdir(parents=True, exist_ok=True)
            dicom_test.save(path, _encoded(_run(*case, 10 * number + place), syntax))
    config = _config(trained, source, target, *predict.OUTPUTS)
    predict.run(config, trained[1])
    return source, target


def _masks(target, file):
    names = [name for name in file["outputs"] if name.endswith("_mask.png")]
    return np.stack([_image(target / name) for name in names]) == 255


def test_lossless_encodings_give_the_same_masks_bit_for_bit(in_all_encodings):
    _, target = in_all_encodings
    found = []
    for number in range(len(CASES)):
        for kind in ("mask.png", "probability.png", "overlay.png"):
            for frame in (1, 2):
                ending = f"_{frame:04d}_{kind}"
                names = [f"{number}/{syntax.keyword}{ending}" for syntax in SYNTAXES]
                assert len({(target / name).read_bytes() for name in names}) == 1, names
                found.append(_image(target / names[0]))
    masks = np.stack(found[:2])  # Of the first case: neither empty nor full.
    assert 0 < np.count_nonzero(masks) < masks.size


def test_the_segmentation_of_every_encoding_is_that_of_the_masks(in_all_encodings):
    _, target = in_all_encodings
    files = _manifest(target)["files"]
    assert len(files) == 2 + len(CASES) * len(SYNTAXES)
    for file in files:
        (name,) = [name for name in file["outputs"] if name.endswith("_seg.dcm")]
        found = highdicom.seg.segread(target / name)
        np.testing.assert_array_equal(found.pixel_array == 1, _masks(target, file))
        of = pydicom.dcmread(file["input"], stop_before_pixels=True).SOPInstanceUID
        (instance,) = found.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        assert instance.ReferencedSOPInstanceUID == of
        for number, groups in enumerate(found.PerFrameFunctionalGroupsSequence, start=1):
            reference = groups.DerivationImageSequence[0].SourceImageSequence[0]
            assert reference.ReferencedSOPInstanceUID == of
            assert reference.ReferencedFrameNumber == number


def test_every_encoding_has_all_outputs_whole(in_all_encodings):
    _, target = in_all_encodings
    for file in _manifest(target)["files"]:
        assert (file["frames"], file["size"], len(file["outputs"])) == (2, [SIZE, SIZE], 2 * 5 + 2)
        name = file["outputs"][0].removesuffix("_0001_mask.png")
        assert video.open_video(target / f"{name}_overlay.mp4").count == 2
        contours = json.loads((target / f"{name}_0002_contours.json").read_text())
        area = sum(each["area"] for each in contours["annotations"])
        assert area == np.count_nonzero(_masks(target, file)[1])
        assert _image(target / f"{name}_0001_probability.png").dtype == np.uint16
