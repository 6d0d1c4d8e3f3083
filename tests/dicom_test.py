import itertools
import random
import sys
import tracemalloc
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from tprnet_jax.data import dicom
from tprnet_jax.report.dicom_seg import write_segmentation
from tprnet_jax.runtime.errors import UserError

pydicom, highdicom, _, _ = map(pytest.importorskip, ("pydicom", "highdicom", "libjpeg", "openjpeg"))
encaps, processing = map(pytest.importorskip, ("pydicom.encaps", "pydicom.pixels.processing"))
Dataset, uid = pydicom.Dataset, pydicom.uid

INSTALL = r"pip install highdicom pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
BUNDLED = Path(pydicom.__file__).parent / "data"
SIZE = (35, 43)


def run(bits=8, frames=3, signed=False, size=SIZE):
    """Noise with a dark vessel, integers (frames, height, width) over the whole range of bits."""
    rng = np.random.default_rng(bits + frames)
    high = 2**bits
    pixels = rng.integers(high // 3, high, (frames, *size))
    for number, frame in enumerate(pixels):
        vessel = np.zeros(size, np.uint8)
        cv2.line(vessel, (2, 3 + number), (size[1] - 4, size[0] - 3), 1, 3)
        frame[vessel > 0] //= 4
    pixels[0, 0, :2] = 0, high - 1
    pixels -= high // 2 if signed else 0
    return pixels.astype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")


def data_set(pixels, kind="MONOCHROME2", bits=8, **elements):
    """An X-ray angiogram of pixels (height, width), (frames, height, width), or with colours."""
    data = Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data.SOPClassUID, data.Modality = uid.XRayAngiographicImageStorage, "XA"
    for number, keyword in enumerate(("SOP", "Study", "Series")):
        setattr(data, f"{keyword}InstanceUID", f"1.2.826.0.1.3680043.8.498.{number}")
    data.set_pixel_data(pixels, "MONOCHROME2" if kind == "PALETTE COLOR" else kind, bits)
    data.PhotometricInterpretation = kind
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return data


def save(path, data):
    data.save_as(path, enforce_file_format=True)
    return path


def read(path):
    return np.stack(list(dicom.open_dicom(path).frames()))


def shown(tmp_path, pixels, *arguments, **elements):
    """Frames of a file that is made for it."""
    return read(save(tmp_path / "a.dcm", data_set(pixels, *arguments, **elements)))


def item(**elements):
    data = Dataset()
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    return data


def frames_or_sentence(path):
    """An angiogram and its frames, or else what the user is told."""
    try:
        angiogram = dicom.open_dicom(path)
        return angiogram, list(angiogram.frames())
    except UserError as error:
        return str(error)


def share(values, low, high):
    return ((np.asarray(values, np.float64) - low) / (high - low)).astype(np.float32)


def jpeg_lossless(frame, bits):
    """JPEG Lossless, selection value 1, of (height, width): ITU-T T.81 annex H, by hand.

    Every one of the 17 categories has a code of 5 bits.
    """
    predicted = np.empty(frame.shape, int)
    predicted[:, 1:], predicted[1:, 0] = frame[:, :-1], frame[:-1, 0]
    predicted[0, 0] = 2 ** (bits - 1)
    stream = ""
    for difference in (frame - predicted).ravel().tolist():
        category = abs(difference).bit_length()
        stream += f"{category:05b}"
        if category:
            code = difference if difference > 0 else difference + 2**category - 1
            stream += f"{code:0{category}b}"
    stream += "1" * (-len(stream) % 8)
    coded = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\x00")
    height, width = frame.shape
    segments = (
        (0xC3, [bits, height >> 8, height & 255, width >> 8, width & 255, 1, 1, 0x11, 0]),
        (0xC4, [0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)]),
        (0xDA, [1, 1, 0, 1, 0, 0]),
    )
    header = b"".join(bytes([255, mark, 0, len(body) + 2, *body]) for mark, body in segments)
    return b"\xff\xd8" + header + coded + b"\xff\xd9"


def encapsulated(data, frames, syntax):
    data.PixelData = encaps.encapsulate(frames)
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = syntax
    return data


# ---- Encodings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 12])
@pytest.mark.parametrize(
    "syntax",
    [
        uid.ExplicitVRLittleEndian,
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEG2000Lossless,
        uid.JPEGLSLossless,
        uid.JPEGLosslessSV1,
    ],
    ids=lambda syntax: syntax.keyword,
)
def test_lossless_encodings_read_back_exactly(tmp_path, syntax, bits):
    pixels = run(bits)
    data = data_set(pixels, bits=bits)
    if syntax == uid.JPEGLosslessSV1:
        encapsulated(data, [jpeg_lossless(frame, bits) for frame in pixels.astype(int)], syntax)
    elif syntax.is_compressed and syntax.is_encapsulated:
        data.compress(syntax)
    elif syntax == uid.ExplicitVRBigEndian:
        data.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
    data.file_meta.TransferSyntaxUID = syntax
    frames = read(save(tmp_path / "a.dcm", data))
    assert frames.dtype == np.float32
    np.testing.assert_array_equal(frames, share(pixels, 0, 2**bits - 1))


def test_jpeg_baseline_reads_back_as_opencv_decodes_it(tmp_path):
    pixels = cv2.GaussianBlur(run()[0], (0, 0), 2)[None].repeat(2, 0)
    coded = [cv2.imencode(".jpg", frame)[1].tobytes() for frame in pixels]
    data = encapsulated(data_set(pixels), coded, uid.JPEGBaseline8Bit)
    frames = read(save(tmp_path / "a.dcm", data))
    expected = [cv2.imdecode(np.frombuffer(x, np.uint8), cv2.IMREAD_GRAYSCALE) for x in coded]
    # Two decoders may round differently, by one grey value of 255.
    np.testing.assert_allclose(frames, np.stack(expected) / 255, atol=1.01 / 255)
    np.testing.assert_allclose(frames, pixels / 255, atol=8 / 255)


def test_frames_are_decoded_one_after_another(tmp_path):
    pixels = run(16, frames=40, size=(200, 200))
    path = save(tmp_path / "a.dcm", data_set(pixels, bits=16))
    tracemalloc.start()
    angiogram = dicom.open_dicom(path)
    opened = tracemalloc.get_traced_memory()[1]
    for frame in angiogram.frames():
        assert frame.shape == (200, 200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert opened < pixels.nbytes / 2  # The pixels are not read yet.
    assert peak < pixels.nbytes + 3e6  # As float32, they would take twice their bytes.


def test_frames_can_be_read_again(tmp_path):
    angiogram = dicom.open_dicom(save(tmp_path / "a.dcm", data_set(run())))
    first, second = (np.stack(list(angiogram.frames())) for _ in range(2))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("more", [0, 1])
def test_frames_beyond_the_stated_number_are_left_out(tmp_path, more):
    data = data_set(run(frames=2 + more))
    data.NumberOfFrames = 2
    for name in ("native", "rle"):
        angiogram = dicom.open_dicom(save(tmp_path / f"{name}.dcm", data))
        assert angiogram.count == len(list(angiogram.frames())) == 2
        if name == "native":
            data.NumberOfFrames = 2 + more
            data.compress(uid.RLELossless)
            data.NumberOfFrames = 2


# ---- Grey values ---------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_values_without_window_share_the_range_of_their_bits(tmp_path, bits, signed):
    pixels = run(bits, signed=signed)
    low = -(2 ** (bits - 1)) if signed else 0
    frames = shown(tmp_path, pixels, "MONOCHROME2", bits)
    np.testing.assert_array_equal(frames, share(pixels, low, low + 2**bits - 1))
    assert dicom.open_dicom(tmp_path / "a.dcm").notes == (
        f"{tmp_path}/a.dcm: has no window, so all values of {bits} bits share the grey scale",
    )


def test_monochrome1_is_inverted(tmp_path):
    pixels = run()
    frames = shown(tmp_path, pixels, "MONOCHROME1")
    np.testing.assert_array_equal(frames, share(255 - pixels, 0, 255))
    assert "inverted" in dicom.open_dicom(tmp_path / "a.dcm").notes[1]


@pytest.mark.parametrize("form", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": 2, "RescaleIntercept": -100}])
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_window_is_applied_as_pydicom_does(tmp_path, kind, rescale, form):
    pixels = run(12)
    window = {"WindowCenter": 1800, "WindowWidth": 2500} | rescale
    window |= {"VOILUTFunction": form} if form else {}
    data = data_set(pixels, kind, 12, **window)
    slope, intercept = rescale.get("RescaleSlope", 1), rescale.get("RescaleIntercept", 0)
    expected = share(
        processing.apply_voi_lut(processing.apply_modality_lut(pixels, data), data),
        intercept,
        4095 * slope + intercept,
    )
    frames = read(save(tmp_path / "a.dcm", data))
    np.testing.assert_allclose(
        frames, 1 - expected if kind == "MONOCHROME1" else expected, atol=1e-6
    )
    note = dicom.open_dicom(tmp_path / "a.dcm").notes[0]
    assert note.endswith("through the window of its header, centre 1800 and width 2500")


def test_window_of_width_one_is_a_step(tmp_path):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    frames = shown(tmp_path, pixels, WindowCenter=100, WindowWidth=1)
    np.testing.assert_array_equal(frames, pixels >= 100)


@pytest.mark.parametrize("form", ["", "UNHEARD_OF"])
def test_window_of_no_known_form_is_linear(tmp_path, form):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    frames = shown(tmp_path, pixels, WindowCenter=128, WindowWidth=256, VOILUTFunction=form)
    np.testing.assert_array_equal(frames, share(pixels, 0, 255))


def test_first_window_that_makes_sense_is_applied(tmp_path):
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    window = {"WindowCenter": [128, 50, 1], "WindowWidth": [0, 101, 256]}
    frames = shown(tmp_path, pixels, **window)
    np.testing.assert_array_equal(frames, np.clip(share(pixels, -0.5, 99.5), 0, 1))


def test_window_without_width_is_not_applied(tmp_path):
    pixels = run()
    for number, window in enumerate(({"WindowCenter": 9}, {"WindowCenter": 9, "WindowWidth": 0})):
        path = save(tmp_path / f"{number}.dcm", data_set(pixels, **window))
        np.testing.assert_array_equal(read(path), share(pixels, 0, 255))


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian])
@pytest.mark.parametrize("data_type", ["US", "OW"])
@pytest.mark.parametrize("signed", [False, True])
def test_voi_lut_goes_before_the_window_and_as_pydicom_does(tmp_path, signed, data_type, syntax):
    pixels = run(12, signed=signed)
    entries = np.linspace(0, 1, 3000) ** 2 * 1023
    table = item(LUTDescriptor=[3000, -500 if signed else 500, 10])
    table["LUTDescriptor"].VR = "SS" if signed else "US"
    table.LUTData = entries.astype("<u2").tobytes() if data_type == "OW" else [*map(int, entries)]
    table["LUTData"].VR = data_type
    data = data_set(
        pixels, "MONOCHROME2", 12, VOILUTSequence=[table], WindowCenter=9, WindowWidth=9
    )
    expected = share(processing.apply_voi_lut(pixels, data), 0, 1023)
    data.file_meta.TransferSyntaxUID = syntax
    np.testing.assert_array_equal(read(save(tmp_path / "a.dcm", data)), expected)
    assert dicom.open_dicom(tmp_path / "a.dcm").notes[0].endswith("the VOI LUT of its header")


@pytest.mark.parametrize("packed", [False, True])
def test_voi_lut_of_bytes_has_more_entries_than_a_byte_counts(tmp_path, packed):
    pixels = run(12)
    entries = np.arange(4096) // 16
    table = item(LUTDescriptor=[4096, 0, 8])
    table.LUTData = entries.astype(np.uint8 if packed else "<u2").tobytes()
    table["LUTData"].VR = "OW"
    frames = shown(tmp_path, pixels, "MONOCHROME2", 12, VOILUTSequence=[table])
    np.testing.assert_array_equal(frames, share(pixels // 16, 0, 255))


def test_voi_lut_of_all_values_says_that_it_has_none(tmp_path):
    pixels = run(16)
    table = item(LUTDescriptor=[0, 0, 16], LUTData=np.arange(2**16, dtype="<u2")[::-1].tobytes())
    table["LUTData"].VR = "OW"
    frames = shown(tmp_path, pixels, "MONOCHROME2", 16, VOILUTSequence=[table])
    np.testing.assert_array_equal(frames, share(65535 - pixels, 0, 65535))


def test_negative_start_of_a_voi_lut_may_be_written_as_unsigned(tmp_path):
    pixels = np.array([[-101, -100, -99, 155, 156]], np.int16)
    table = item(LUTDescriptor=[256, 2**16 - 100, 8], LUTData=[*range(256)])
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    frames = shown(tmp_path, pixels, "MONOCHROME2", 12, VOILUTSequence=[table])
    np.testing.assert_array_equal(frames[0], share([[0, 0, 1, 255, 255]], 0, 255))


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 100, "WindowWidth": 120}])
def test_modality_lut_goes_before_the_window(tmp_path, window):
    pixels = run()
    table = item(LUTDescriptor=[200, 20, 8], LUTData=[*range(200)], ModalityLUTType="US")
    table["LUTData"].VR = "US"
    data = data_set(pixels, ModalityLUTSequence=[table], **window)
    expected = share(
        processing.apply_voi_lut(processing.apply_modality_lut(pixels, data), data), 0, 255
    )
    frames = read(save(tmp_path / "a.dcm", data))
    np.testing.assert_allclose(frames, expected, atol=1e-6)


@pytest.mark.parametrize("relationship", ["LOG", "DISP"])
def test_modality_lut_back_to_intensity_is_not_applied(tmp_path, relationship):
    pixels = run()
    table = item(LUTDescriptor=[256, 0, 8], LUTData=[0] * 256, ModalityLUTType="US")
    table["LUTData"].VR = "US"
    elements = {"ModalityLUTSequence": [table], "PixelIntensityRelationship": relationship}
    np.testing.assert_array_equal(shown(tmp_path, pixels, **elements), share(pixels, 0, 255))


def test_negative_slope_keeps_the_range(tmp_path):
    pixels = run()
    frames = shown(tmp_path, pixels, RescaleSlope=-3, RescaleIntercept=7)
    np.testing.assert_array_equal(frames, share(255 - pixels, 0, 255))


def test_absurd_headers_stay_in_range(tmp_path):
    for number, elements in enumerate(
        (
            {"RescaleSlope": "1e308", "RescaleIntercept": "1e308"},
            {"RescaleSlope": 0, "RescaleIntercept": 5},
            {"WindowCenter": "1e300", "WindowWidth": "1e-300", "VOILUTFunction": "SIGMOID"},
            {"WindowCenter": "-1e308", "WindowWidth": "1e308"},
        )
    ):
        frames = read(save(tmp_path / f"{number}.dcm", data_set(run(), **elements)))
        assert frames.min() >= 0
        assert frames.max() <= 1


def test_each_frame_of_an_enhanced_file_has_its_own_window_or_lut(tmp_path):
    pixels = np.full((3, 8, 8), 100, np.uint8)
    windows = [
        item(FrameVOILUTSequence=[item(WindowCenter=centre, WindowWidth=101)])
        for centre in (101, 76, 0)
    ]
    table = item(LUTDescriptor=[256, 0, 16], LUTData=np.arange(256, dtype="<u2").tobytes())
    table["LUTData"].VR = "OW"
    windows[2] = item(FrameVOILUTSequence=[item(VOILUTSequence=[table])])
    spaced = item(PixelMeasuresSequence=[item(PixelSpacing=[0.2, 0.3])])
    data = data_set(
        pixels, PerFrameFunctionalGroupsSequence=windows, SharedFunctionalGroupsSequence=[spaced]
    )
    frames = read(save(tmp_path / "a.dcm", data))
    expected = [np.full((8, 8), value, np.float32) for value in (0.495, 0.745, 100 / 65535)]
    np.testing.assert_allclose(frames, expected, rtol=1e-6)
    angiogram = dicom.open_dicom(tmp_path / "a.dcm")
    assert angiogram.spacing == (0.2, 0.3)
    assert "WindowCenter" not in angiogram.header


# ---- Colour --------------------------------------------------------------------------------------


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_becomes_luma(tmp_path, planar):
    colours = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
    data = data_set(colours, "RGB")
    if planar:
        data.PixelData, data.PlanarConfiguration = colours.transpose(0, 3, 1, 2).tobytes(), 1
    frames = read(save(tmp_path / "a.dcm", data))
    red, green, blue = np.moveaxis(colours / 255, -1, 0)
    np.testing.assert_allclose(frames, 0.299 * red + 0.587 * green + 0.114 * blue, atol=1e-6)
    assert dicom.open_dicom(tmp_path / "a.dcm").notes == (
        f"{tmp_path}/a.dcm: converted from colour to grey",
    )


def test_equal_channels_keep_their_values(tmp_path):
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    frames = shown(tmp_path, np.dstack([grey] * 3), "RGB")
    np.testing.assert_array_equal(frames[0], share(grey, 0, 255))


@pytest.mark.parametrize("kind", ["YBR_FULL", "YBR_FULL_422"])
def test_luma_and_chroma_become_rgb_first(tmp_path, kind):
    whole = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    data = data_set(whole, "YBR_FULL")
    if kind == "YBR_FULL_422":  # Two pixels share their chroma.
        luma, chroma = whole[..., 0].reshape(8, 4, 2), whole[:, ::2, 1:]
        data.PixelData = np.concatenate([luma, chroma], axis=-1).tobytes()
        data.PhotometricInterpretation = kind
    frames = read(save(tmp_path / "a.dcm", data))
    rgb = next(pydicom.pixels.iter_pixels(tmp_path / "a.dcm"))
    np.testing.assert_allclose(frames[0], rgb / 255 @ [0.299, 0.587, 0.114], atol=1e-6)


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_is_looked_up(tmp_path, bits):
    indices = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tables = np.random.default_rng(0).integers(0, 2**bits, (3, 200)).astype(f"<u{bits // 8}")
    elements = {}
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [200, 10, bits]
        elements[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    data = data_set(indices, "PALETTE COLOR", **elements)
    frames = read(save(tmp_path / "a.dcm", data))
    rgb = processing.apply_color_lut(indices, data) / (2**bits - 1)
    np.testing.assert_allclose(frames[0], rgb @ [0.299, 0.587, 0.114], atol=1e-6)
    assert frames[0, 0, 10] == frames[0, 0, 0]  # What is below the table has its first entry.


# ---- What the header says ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("elements", "spacing", "noted"),
    [
        ({}, None, False),
        ({"PixelSpacing": [0.2, 0.25]}, (0.2, 0.25), False),
        ({"PixelSpacing": [0.2, 0.25], "ImagerPixelSpacing": [0.3, 0.3]}, (0.2, 0.25), False),
        ({"ImagerPixelSpacing": [0.3, 0.45]}, (0.3, 0.45), True),
        # Equal, and not said to be calibrated: both are the detector's.
        ({"PixelSpacing": [0.3, 0.45], "ImagerPixelSpacing": [0.3, 0.45]}, (0.3, 0.45), True),
        (
            {
                "PixelSpacing": [0.3, 0.3],
                "ImagerPixelSpacing": [0.3, 0.3],
                "PixelSpacingCalibrationType": "GEOMETRY",
            },
            (0.3, 0.3),
            False,
        ),
        (
            {
                "PixelSpacing": [0.3, 0.45],
                "ImagerPixelSpacing": [0.3, 0.45],
                "EstimatedRadiographicMagnificationFactor": 1.5,
            },
            (0.3 / 1.5, 0.45 / 1.5),
            False,
        ),
        (
            {"ImagerPixelSpacing": [0.3, 0.45], "EstimatedRadiographicMagnificationFactor": 1.5},
            (0.3 / 1.5, 0.45 / 1.5),
            False,
        ),
        ({"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.3, 0.3]}, (0.3, 0.3), True),
        ({"PixelSpacing": 0.2}, None, False),
    ],
)
def test_spacing_is_in_the_patient_if_the_file_tells(tmp_path, elements, spacing, noted):
    angiogram = dicom.open_dicom(save(tmp_path / "a.dcm", data_set(run(), **elements)))
    assert angiogram.spacing == spacing
    assert any("at the detector" in note for note in angiogram.notes) == noted


@pytest.mark.parametrize(
    ("elements", "rate"),
    [
        ({}, None),
        ({"FrameTime": 80}, 12.5),
        ({"FrameTime": 80, "CineRate": 15}, 15),
        ({"FrameTime": 80, "CineRate": 15, "RecommendedDisplayFrameRate": 30}, 30),
        ({"FrameTime": 80, "CineRate": 0}, 12.5),
        ({"FrameTime": 0}, None),
    ],
)
def test_rate_is_that_of_display_then_of_recording(tmp_path, elements, rate):
    assert dicom.open_dicom(save(tmp_path / "a.dcm", data_set(run(), **elements))).rate == rate


def test_size_count_and_kind_are_the_headers(tmp_path):
    several = dicom.open_dicom(save(tmp_path / "several.dcm", data_set(run(), CineRate=15)))
    single = dicom.open_dicom(save(tmp_path / "single.dcm", data_set(run()[0], CineRate=15)))
    assert (several.size, several.count, several.is_run) == (SIZE, 3, True)
    assert (single.size, single.count, single.is_run, single.rate) == (SIZE, 1, False, None)


def test_header_has_all_but_the_pixels(tmp_path):
    data = data_set(run(), PatientID="7")
    header = dicom.open_dicom(save(tmp_path / "a.dcm", data)).header
    assert {x.keyword for x in data} - {x.keyword for x in header} == {"PixelData"}
    assert (header.PatientID, header.SOPInstanceUID) == ("7", data.SOPInstanceUID)


@pytest.mark.parametrize("value", ["abc", "1\\2\\x", "", "nan", "inf", "-5"])
def test_numbers_that_are_none_count_as_absent(tmp_path, value):
    keywords = ("WindowCenter", "WindowWidth", "RescaleSlope", "PixelSpacing", "FrameTime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = data_set(run(), **dict.fromkeys(keywords, "77777777"))
        save(tmp_path / "a.dcm", data)
    content = (tmp_path / "a.dcm").read_bytes()
    assert content.count(b"77777777") == 5
    (tmp_path / "a.dcm").write_bytes(content.replace(b"77777777", value.ljust(8).encode()))
    angiogram = dicom.open_dicom(tmp_path / "a.dcm")
    assert (angiogram.spacing, angiogram.rate) == (None, None)
    np.testing.assert_array_equal(np.stack(list(angiogram.frames())), share(run(), 0, 255))


# ---- Which files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize(
    ("name", "marked"), [("a.png", True), ("a.dcm", False), ("A.IMA", False), ("IM0001", False)]
)
def test_dicom_is_known_by_its_mark_or_its_content(tmp_path, name, marked, implicit):
    path, data = tmp_path / name, data_set(run())
    if marked:
        save(path, data)
    else:
        del data.file_meta  # And with it the mark.
        data.save_as(path, implicit_vr=implicit, little_endian=True)
        np.testing.assert_array_equal(read(path), share(run(), 0, 255))
    assert dicom.is_dicom(path)
    assert dicom.is_dicom(str(path))


@pytest.mark.parametrize("suffix", ["", ".dcm", ".png"])
def test_other_files_are_not_dicom(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    assert not dicom.is_dicom(path)
    for content in (b"", b"text", bytes(1000), random.Random(0).randbytes(5000)):
        path.write_bytes(content)
        assert not dicom.is_dicom(path)
    assert not dicom.is_dicom(tmp_path)


def test_content_without_mark_counts_only_under_dicoms_names(tmp_path):
    path = save(tmp_path / "a.dcm", data_set(run()))
    other = tmp_path / "a.bin"
    other.write_bytes(path.read_bytes()[132:])
    assert not dicom.is_dicom(other)


# ---- What can be wrong ---------------------------------------------------------------------------


def broken(tmp_path, change):
    data = data_set(run())
    change(data)
    return save(tmp_path / "a.dcm", data)


def remove(*keywords):
    def change(data):
        for keyword in keywords:
            del data[keyword]

    return change


def put(**elements):
    return lambda data: data.update(item(**elements))


def in_syntax(syntax):
    def change(data):
        encapsulated(data, [b"\0" * 100] * 3, syntax)

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (remove("PixelData"), r"\(X-Ray Angiographic Image Storage\) is encrypted or has no pixel"),
        (put(Rows=0), "has 3 frames of 0 x 43 pixels in .* bytes; give a whole"),
        (put(NumberOfFrames=-2), "has -2 frames of 35 x 43 pixels in .* bytes; give a whole"),
        (put(NumberOfFrames=10**9), "has 1000000000 frames of 35 x 43 pixels in .*; give a whole"),
        (remove("Columns"), "has 3 frames of 35 x 0 pixels in .* bytes; give a whole"),
        (put(Rows=[35, 36]), r"cannot be decoded \(.*; give a whole copy of it"),
        (
            put(PhotometricInterpretation="HSV"),
            "has pixels of the kind HSV; give MONOCHROME1, MONO",
        ),
        (remove("BitsStored"), r"cannot be decoded \(.*; give a whole copy of it"),
        (put(NumberOfFrames=9), r"cannot be decoded \(The number of bytes .*4516 vs 13546"),
        (in_syntax(uid.MPEG2MPML), r"cannot be decoded \(.*MPEG2 Main.*or convert it"),
        (in_syntax(uid.JPEG2000Lossless), r"cannot be decoded \(.*give a whole copy of it"),
        (in_syntax(uid.RLELossless), r"cannot be decoded \(.*give a whole copy of it"),
        (in_syntax("1.2.840.10008.1.2.4.52"), r"cannot be decoded \(.*Process 3 and 5.*convert it"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, change, sentence):
    with pytest.raises(UserError, match=rf"a\.dcm {sentence}") as caught:
        read(broken(tmp_path, change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keyword", ["FloatPixelData", "DoubleFloatPixelData"])
def test_floating_point_is_no_angiogram(tmp_path, keyword):
    data = data_set(run())
    del data.PixelData
    setattr(data, keyword, np.zeros(SIZE, "<f4" if keyword[0] == "F" else "<f8").tobytes())
    with pytest.raises(UserError, match=r"a\.dcm .*has no pixel data"):
        dicom.open_dicom(save(tmp_path / "a.dcm", data))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("reportsi.dcm", "Basic Text SR Storage"),
        ("rtstruct.dcm", "RT Structure Set Storage"),
        ("dicomdirtests/DICOMDIR", "Media Storage Directory Storage"),
    ],
)
def test_other_objects_are_named(name, found):
    with pytest.raises(UserError, match=rf"\({found}\) is encrypted or has no pixel data; give"):
        dicom.open_dicom(BUNDLED / "test_files" / name)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x30\x82" + random.Random(0).randbytes(3000), b"text\n" * 99, bytes(200) + b"x"],
    ids=["empty", "encrypted", "text", "zeros"],
)
def test_what_is_no_dicom_is_told_by_its_size(tmp_path, content):
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    wrong = rf"a\.dcm \({len(content)} bytes\) is encrypted, damaged or no DICOM file; give a"
    with pytest.raises(UserError, match=wrong):
        dicom.open_dicom(path)


def test_files_that_cannot_be_read_say_why(tmp_path):
    for path, why in ((tmp_path / "gone.dcm", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UserError, match=rf"cannot read {path} \({why}.*may be read"):
            dicom.open_dicom(path)


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless])
@pytest.mark.parametrize("kept", [0.02, 0.4, 0.7, 0.95])
def test_truncated_files_are_a_sentence(tmp_path, syntax, kept):
    data = data_set(run(frames=5))
    if syntax.is_encapsulated:
        data.compress(syntax)
    path = save(tmp_path / "a.dcm", data)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match=r"a\.dcm.* (decoded|damaged|no pixel data)"):
        read(path)


def test_fewer_frames_than_stated_are_a_sentence_after_those_there_are(tmp_path):
    data = data_set(run(frames=2))
    data.compress(uid.RLELossless)
    data.NumberOfFrames = 5
    frames = dicom.open_dicom(save(tmp_path / "a.dcm", data)).frames()
    assert len(list(itertools.islice(frames, 2))) == 2
    with pytest.raises(UserError, match=r"a\.dcm has only 2 of the 5 frames .*; give a whole"):
        next(frames)


def test_too_long_runs_are_nothing_worse_than_a_sentence(tmp_path, capfd):
    assert SIZE == (35, 43)  # 1505 pixels are 11 runs of 128 and one of 97.
    segment = b"\x81\x00" * 11 + b"\xa0\x00"
    longer = b"\x81\x00" * 11 + b"\x7f" + bytes(128)
    header = np.array([2, 64, 64 + len(segment), *[0] * 13], "<u4").tobytes()
    frame = header + segment + longer
    data = encapsulated(data_set(run(12), bits=12), [frame] * 3, uid.RLELossless)
    found = frames_or_sentence(save(tmp_path / "a.dcm", data))
    assert isinstance(found, str) or np.count_nonzero(found[1]) == 0
    assert capfd.readouterr() == ("", "")


def test_missing_pydicom_is_a_sentence(tmp_path, monkeypatch):
    path = save(tmp_path / "a.dcm", data_set(run()))
    bare = tmp_path / "IM1"
    bare.write_bytes(path.read_bytes()[132:])
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=rf"a\.dcm needs pydicom; install it with {INSTALL}"):
        dicom.open_dicom(path)
    assert dicom.is_dicom(path)
    assert not dicom.is_dicom(bare)


def test_missing_decoder_is_a_sentence(tmp_path, monkeypatch):
    path = broken(tmp_path, in_syntax(uid.JPEG2000))
    monkeypatch.setattr("pydicom.pixels.decoders.JPEG2000Decoder._available", {})
    with pytest.raises(UserError, match=rf"JPEG 2000 .*whose decoder is missing; run {INSTALL}"):
        dicom.open_dicom(path)


def test_pydicom_says_nothing_itself(capfd, caplog):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for name in ("JPEG-lossy.dcm", "badVR.dcm", "JPEG2000-embedded-sequence-delimiter.dcm"):
            with pytest.raises(UserError):
                read(BUNDLED / "test_files" / name)
        read(BUNDLED / "test_files" / "J2K_pixelrep_mismatch.dcm")
    assert (heard, caplog.records, capfd.readouterr()) == ([], [], ("", ""))


def test_warnings_of_others_are_not_repeated(tmp_path):
    path = save(tmp_path / "a.dcm", data_set(run()))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        for frame in dicom.open_dicom(path).frames():
            warnings.warn(f"heard once, not for each of {len(frame)} rows", stacklevel=1)
    assert len(heard) == 1


def test_every_file_of_pydicom_gives_frames_or_a_sentence():
    known = seen = 0
    for path in sorted(path for path in BUNDLED.rglob("*") if path.is_file()):
        known += dicom.is_dicom(path)
        found = frames_or_sentence(path)
        if isinstance(found, str):
            assert str(path) in found
            assert found.isprintable()
            continue
        angiogram, frames = found
        assert len(frames) == angiogram.count
        assert {frame.shape for frame in frames} == {angiogram.size}
        assert {frame.dtype for frame in frames} == {np.dtype(np.float32)}
        assert min(frame.min() for frame in frames) >= 0
        assert max(frame.max() for frame in frames) <= 1
        seen += 1
    assert known >= 180  # Of pydicom 3.0.2: 191, and 101 of them have an image.
    assert seen >= 95


def test_damage_anywhere_gives_frames_or_a_sentence(tmp_path):
    chance, path = random.Random(0), tmp_path / "a.dcm"
    sources = sorted((BUNDLED / "test_files").glob("*.dcm"))
    sources = [source.read_bytes() for source in sources if source.stat().st_size < 50_000]
    for _ in range(300):
        content = bytearray(chance.choice(sources))
        for _ in range(chance.choice([1, 5, 20])):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content[: chance.choice([None, chance.randrange(len(content))])])
        found = frames_or_sentence(path)
        if isinstance(found, str):
            assert found.isprintable()
        else:
            assert len(found[1]) == found[0].count
            assert all(0 <= frame.min() <= frame.max() <= 1 for frame in found[1])


# ---- Segmentations -------------------------------------------------------------------------------


def segmented(tmp_path, pixels, masks, **elements):
    """A source, and a segmentation of it as highdicom reads it."""
    source = data_set(pixels, **elements)
    header = dicom.open_dicom(save(tmp_path / "a.dcm", source)).header
    write_segmentation(tmp_path / "seg.dcm", header, masks, "a model", "1.2")
    assert {path.name for path in tmp_path.iterdir()} == {"a.dcm", "seg.dcm"}
    return source, highdicom.seg.segread(tmp_path / "seg.dcm")


def some_masks(frames, size=SIZE):
    """The second is empty."""
    masks = np.random.default_rng(1).random((frames, *size)) < 0.3
    masks[1:2] = False
    return masks


def read_segmentation(path):
    """bool (frames, height, width)."""
    found = pydicom.dcmread(path)
    return found.pixel_array.reshape(found.NumberOfFrames, found.Rows, found.Columns) > 0


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_segmentation_of_a_run_has_all_masks_each_of_its_frame(tmp_path, frames):
    masks = some_masks(frames)
    source, found = segmented(tmp_path, run(frames=frames), masks, NumberOfFrames=frames)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm"), masks)
    for number in range(1, frames + 1):
        of_frame = found.get_pixels_by_source_frame(source.SOPInstanceUID, [number])
        np.testing.assert_array_equal(of_frame[0, ..., 0], masks[number - 1])
        groups = found.PerFrameFunctionalGroupsSequence[number - 1]
        reference = groups.DerivationImageSequence[0].SourceImageSequence[0]
        assert reference.ReferencedSOPClassUID == uid.XRayAngiographicImageStorage
        assert reference.ReferencedFrameNumber == number
        assert groups.FrameContentSequence[0].TemporalPositionIndex == number
        assert list(groups.FrameContentSequence[0].DimensionIndexValues) == [1, number]


@pytest.mark.parametrize(
    "storage",
    [
        uid.XRayAngiographicImageStorage,
        uid.ComputedRadiographyImageStorage,
        uid.SecondaryCaptureImageStorage,
    ],
    ids=lambda storage: storage.keyword,
)
def test_segmentation_of_one_image_refers_to_it(tmp_path, storage):
    masks = some_masks(1)
    pixels, spacing = run(frames=1)[0], [0.2, 0.2]
    source, found = segmented(tmp_path, pixels, masks, SOPClassUID=storage, PixelSpacing=spacing)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm"), masks)
    pixels = found.get_pixels_by_source_instance([source.SOPInstanceUID])
    np.testing.assert_array_equal(pixels[..., 0], masks)
    reference = found.ReferencedSeriesSequence[0]
    assert reference.SeriesInstanceUID == source.SeriesInstanceUID
    assert reference.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID


def test_segmentation_says_what_it_is_of_whom_and_by_what(tmp_path):
    kept = {
        "PatientID": "7",
        "PatientName": "M\u00fcller^Jos\u00e9",
        "StudyDate": "20240229",
        "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.9",
    }
    source, found = segmented(
        tmp_path, run(), some_masks(3), SpecificCharacterSet="ISO_IR 100", **kept
    )
    for keyword in (*kept, "StudyInstanceUID"):
        assert found[keyword].value == source[keyword].value
    assert found.SeriesInstanceUID != source.SeriesInstanceUID
    assert (found.Modality, found.SegmentationType, found.number_of_segments) == (
        "SEG",
        "BINARY",
        1,
    )
    segment = found.get_segment_description(1)
    assert segment.segmented_property_category.value == "91723000"
    assert segment.segmented_property_type.value == "41801008"
    assert segment.algorithm_type.value == "AUTOMATIC"
    assert segment.algorithm_identification.name == "a model"
    assert segment.algorithm_identification.version == "1.2"


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        (None, "A^B"),
        ("ISO_IR 6", "A^B"),
        ("ISO_IR 192", "M\u00fcller^Jos\u00e9"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=\u6d2a^\u5409\u6d1e=\ud64d^\uae38\ub3d9"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=\u5c71\u7530^\u592a\u90ce"),
    ],
)
def test_segmentation_keeps_names_in_any_script(tmp_path, character_set, name):
    source = data_set(run(), PatientName=name)
    if character_set is not None:
        source.SpecificCharacterSet = character_set
    header = dicom.open_dicom(save(tmp_path / "a.dcm", source)).header
    write_segmentation(tmp_path / "seg.dcm", header, some_masks(3), "\u6a21\u578b", "1")
    write_segmentation(tmp_path / "seg.dcm", header, some_masks(3), "\u6a21\u578b", "1")
    found = pydicom.dcmread(tmp_path / "seg.dcm")  # The first writing has not changed the header.
    assert found.PatientName == name
    assert found.ManufacturerModelName == "\u6a21\u578b"


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_segmentation_of_other_encodings_keeps_the_patient(tmp_path, syntax):
    source = data_set(run(), PatientName="A^B", PatientID="7", PatientSize=1.7)
    source.file_meta.TransferSyntaxUID = syntax
    header = dicom.open_dicom(save(tmp_path / "a.dcm", source)).header
    write_segmentation(tmp_path / "seg.dcm", header, some_masks(3), "a model", "1")
    found = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (found.PatientName, found.PatientID, found.PatientSize) == ("A^B", "7", 1.7)


def test_segmentation_has_no_positions_in_space(tmp_path):
    places = {
        "SOPClassUID": uid.CTImageStorage,
        "FrameOfReferenceUID": "1.2.3",
        "ImagePositionPatient": [1, 2, 3],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    }
    masks = some_masks(1)
    _, found = segmented(tmp_path, run(frames=1)[0], masks, **places)
    np.testing.assert_array_equal(read_segmentation(tmp_path / "seg.dcm"), masks)
    assert found.FrameOfReferenceUID == "1.2.3"
    assert "PlanePositionSequence" not in found.PerFrameFunctionalGroupsSequence[0]


def test_long_names_of_models_are_cut(tmp_path):
    header = data_set(run())
    write_segmentation(tmp_path / "seg.dcm", header, some_masks(3), "x" * 99, "1")
    assert pydicom.dcmread(tmp_path / "seg.dcm").ManufacturerModelName == "x" * 61 + "..."


@pytest.mark.parametrize(
    "keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"]
)
def test_segmentation_needs_what_it_refers_to(tmp_path, keyword):
    header = data_set(run())
    del header[keyword]
    with pytest.raises(UserError, match=rf"seg\.dcm cannot be made, .* has no {keyword}; give"):
        write_segmentation(tmp_path / "seg.dcm", header, some_masks(3), "a model", "1")
    assert not list(tmp_path.iterdir())


def test_segmentation_of_an_unknown_class_is_a_sentence(tmp_path):
    header = data_set(run(), SOPClassUID="1.2.3.4")
    with pytest.raises(UserError, match=r"seg\.dcm cannot be made \(.*1\.2\.3\.4.*\); give"):
        write_segmentation(tmp_path / "seg.dcm", header, some_masks(3), "a model", "1")
    assert not list(tmp_path.iterdir())


def test_failed_write_of_a_segmentation_leaves_nothing(tmp_path):
    (tmp_path / "seg.dcm").mkdir()
    for path in (tmp_path / "seg.dcm", tmp_path / "none" / "seg.dcm"):
        with pytest.raises(UserError, match=r"cannot write .*seg\.dcm .*; choose a folder"):
            write_segmentation(path, data_set(run()), some_masks(3), "a model", "1")
    assert [path.name for path in tmp_path.iterdir()] == ["seg.dcm"]


def test_missing_highdicom_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(UserError, match=rf"seg\.dcm needs highdicom; install it with {INSTALL}"):
        write_segmentation(tmp_path / "seg.dcm", data_set(run()), some_masks(3), "a model", "1")
