import importlib.util
import itertools
import json
import os
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest

from configs import tprnet_compact
from tprnet_jax.data import folder, loader, pairs
from tprnet_jax.runtime.errors import UserError

SQUARE = np.zeros((12, 10), np.uint8)
SQUARE[3:9, 2:7] = 1  # 30 of 120 pixels
STEMS = ("a", "b", "c", "d", "e", "f")
CONFIG = Path(__file__).parents[1] / "configs" / "folder.py"


def picture(value):
    image = np.full((12, 10), value, np.uint8)
    image[0, 0] = 0
    return image


def write(path, array):
    assert cv2.imwrite(str(path), array)


def write_source(source):
    """Writes six pairs, a.png to f.png: images of 10 to 60, the square as masks of 0 and 255."""
    for name in ("images", "masks"):
        (source / name).mkdir(parents=True)
    for index, stem in enumerate(STEMS):
        write(source / "images" / f"{stem}.png", picture(10 * (index + 1)))
        write(source / "masks" / f"{stem}.png", SQUARE * 255)
    return source


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "data")


def split_file(source, content):
    path = source.parent / "splits.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def prepare(source, splits="", folds=3, fold=0, seed=0):
    return folder.prepare(str(source), splits, folds, fold, seed)


def names(dataset, split):
    return [example["name"].decode() for example in dataset[split]]


def only(source, capsys):
    """The one example of a folder whose split file names a alone, and what was printed."""
    dataset = prepare(source, split_file(source, {"test": ["a"]}))
    return dataset["test"][0], capsys.readouterr().out


# ---- Examples ------------------------------------------------------------------------------------


def test_examples_are_those_of_the_files(source):
    dataset = prepare(source, split_file(source, {"train": ["b", "a"], "validation": ["f"]}))
    assert tuple(dataset) == ("train", "validation")
    examples = list(dataset["train"])
    assert [example["name"] for example in examples] == [b"b.png", b"a.png"]
    for example, value in zip(examples, (20, 10), strict=True):
        assert example["image"].dtype == example["mask"].dtype == np.uint8
        np.testing.assert_array_equal(example["image"], picture(value)[..., None])
        np.testing.assert_array_equal(example["mask"], SQUARE[..., None] * 255)


def test_suffixes_may_differ_in_kind_and_case(source, capsys):
    (source / "images" / "a.png").rename(source / "images" / "a.PNG")
    write(source / "masks" / "a.bmp", SQUARE * 255)
    (source / "masks" / "a.bmp").rename(source / "masks" / "a.BMP")
    (source / "masks" / "a.png").unlink()
    example, _ = only(source, capsys)
    assert example["name"] == b"a.PNG"
    np.testing.assert_array_equal(example["mask"][..., 0], SQUARE * 255)


def test_jpeg_and_tiff_are_read(source, capsys):
    (source / "images" / "a.png").unlink()
    (source / "masks" / "a.png").unlink()
    write(source / "images" / "a.jpeg", np.full((12, 10), 77, np.uint8))
    write(source / "masks" / "a.tif", SQUARE * 255)
    example, _ = only(source, capsys)
    np.testing.assert_array_equal(example["image"], np.full((12, 10, 1), 77, np.uint8))
    np.testing.assert_array_equal(example["mask"][..., 0], SQUARE * 255)


def test_colour_becomes_grey_and_is_counted(source, capsys):
    colour = np.zeros((12, 10, 3), np.uint8)
    colour[..., 1] = 200
    write(source / "images" / "a.png", colour)
    write(source / "images" / "b.png", np.dstack([picture(20)] * 3))
    dataset = prepare(source)
    printed = capsys.readouterr().out
    assert "; 1 of 6 images converted from colour to grey; 6 of 6 masks holding 0 and 255" in (
        printed
    )
    images = {
        example["name"]: example["image"]
        for split in ("train", "validation")
        for example in dataset[split]
    }
    assert np.unique(images[b"a.png"]).tolist() == [117]  # 0.587 * 200
    np.testing.assert_array_equal(images[b"b.png"], picture(20)[..., None])


def test_transparency_is_dropped_and_counted(source, capsys):
    opaque = np.dstack([picture(10)] * 3 + [np.full((12, 10), 9, np.uint8)])
    write(source / "images" / "a.png", opaque)
    example, printed = only(source, capsys)
    assert "1 of 1 images without their alpha channel" in printed
    np.testing.assert_array_equal(example["image"], picture(10)[..., None])


def test_sixteen_bits_make_all_images_float(source, capsys):
    deep = np.full((12, 10), 1000, np.uint16)
    deep[0] = 3000
    deep[1] = 1500
    write(source / "images" / "a.png", deep)
    dataset = prepare(source, split_file(source, {"train": ["a"], "validation": ["b"]}))
    assert "1 of 2 images of more than 8 bits, each stretched over" in capsys.readouterr().out
    train, validation = (dataset[s][0]["image"] for s in ("train", "validation"))
    assert train.dtype == validation.dtype == np.float32
    assert train.shape == validation.shape == (12, 10, 1)
    assert [train[0, 0, 0], train[1, 0, 0], train[2, 0, 0]] == [1, 0.25, 0]
    np.testing.assert_array_equal(validation[..., 0], picture(20) / np.float32(255))


def test_one_line_is_printed(source, capsys):
    (source / "images" / "notes.txt").write_text("")
    (source / "images" / ".hidden.png").write_text("")
    write(source / "masks" / "b.png", SQUARE)
    prepare(source, split_file(source, {"train": ["a", "b"], "test": ["c.png"]}))
    assert capsys.readouterr() == (
        "images: 2 train, 1 test; 2 of 3 masks holding 0 and 255; 1 of 3 masks holding 0 and 1; 1 "
        "other files ignored, the first is images/notes.txt; 3 images in no split, the "
        "first is d\n",
        "",
    )


def test_nothing_is_written_and_a_source_survives_pickling(source):
    before = sorted(source.rglob("*"))
    copy = pickle.loads(pickle.dumps(prepare(source)["train"]))
    assert len(copy) == 4
    assert copy[0]["image"].shape == (12, 10, 1)
    assert sorted(source.rglob("*")) == before


def test_a_file_that_is_damaged_later_is_named_when_it_is_read(source):
    dataset = prepare(source, split_file(source, {"train": ["a", "b"]}))
    (source / "masks" / "b.png").write_bytes(b"")
    train = dataset["train"]
    assert train[0]["name"] == b"a.png"
    with pytest.raises(UserError, match=r"masks/b\.png \(0 bytes\) is damaged"):
        train[1]


# ---- Masks ---------------------------------------------------------------------------------------


def mask_values(stored):
    mask, values = pairs.binarise(stored, "a.png")
    assert mask.dtype == np.uint8
    return mask, values


@pytest.mark.parametrize(
    ("stored", "values"),
    [
        (SQUARE, "0 and 1"),
        (SQUARE * 255, "0 and 255"),
        (SQUARE * 2, "0 and 2"),
        (SQUARE.astype(np.uint16) * 65535, "0 and 65535"),
        (SQUARE.astype(np.float32), "0 and 1"),
        (SQUARE.astype(np.float32) * 0.5, "0 and 0.5"),
        (np.dstack([SQUARE * 0, SQUARE * 0, SQUARE * 255]), "0 and 255"),
        (np.dstack([SQUARE] * 3 + [SQUARE * 0 + 255]), "0 and 1"),
    ],
)
def test_two_values_are_background_and_vessel(stored, values):
    mask, found = mask_values(stored)
    assert found == values
    np.testing.assert_array_equal(mask, SQUARE * 255)


def test_empty_and_full_masks_are_masks():
    mask, values = mask_values(SQUARE * 0)
    assert (mask.max(), values) == (0, "only 0")
    mask, values = mask_values(SQUARE * 0 + 255)
    assert (mask.min(), values) == (255, "only 255")


def test_one_bit_png_is_a_mask(source, capsys):
    path = source / "masks" / "a.png"
    assert cv2.imwrite(str(path), SQUARE * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])
    assert path.read_bytes()[24] == 1  # the header's bit depth
    example, printed = only(source, capsys)
    assert "1 of 1 masks holding 0 and 255" in printed
    np.testing.assert_array_equal(example["mask"][..., 0], SQUARE * 255)


def discs():
    """Ground truth that compression and blurring give edges to."""
    mask = np.zeros((128, 128), np.uint8)
    for column, radius in ((20, 8), (50, 5), (80, 3), (110, 12)):
        cv2.circle(mask, (column, 64), radius, 255, -1)
    return mask


@pytest.mark.parametrize("quality", [10, 30, 50, 75])
def test_jpeg_edges_are_cut_at_half(quality):
    flag, encoded = cv2.imencode(".jpg", discs(), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert flag
    stored = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    assert len(np.unique(stored)) > 10
    mask, values = mask_values(stored)
    assert values == "grey edges, cut at half"
    np.testing.assert_array_equal(mask > 0, stored > stored.max() / 2)
    assert np.mean((mask > 0) != (discs() > 0)) < 0.01


@pytest.mark.parametrize("largest", [255, 65535, 1.0])
def test_blurred_edges_are_cut_at_half_the_largest(largest):
    line = np.array([0, 0.2, 0.5, 0.51, 0.8, 1, 1, 1, 0.4, 0, 0, 0])
    kind = {255: np.uint8, 65535: np.uint16, 1.0: np.float32}[largest]
    stored = np.pad(line[None] * largest, ((20, 20), (20, 20))).astype(kind)
    mask, values = mask_values(stored)
    assert values == "grey edges, cut at half"
    expected = [0, 0, 0, 255, 255, 255, 255, 255, 0, 0, 0, 0]
    assert mask[20, 20:-20].tolist() == expected
    assert np.count_nonzero(mask) == 5


def labels(*values):
    stored = np.zeros((40, 40), np.uint8)
    for index, value in enumerate(values):
        stored[5:9, 5 + 8 * index : 10 + 8 * index] = value
    return stored


@pytest.mark.parametrize(
    ("stored", "words"),
    [
        (labels(1, 2, 3), "0, 1, 2, 3"),
        (labels(85, 170, 255), "0, 85, 170, 255"),
        (labels(40, 255), "0, 40, 255"),
        (SQUARE + 1, "1, 2"),
        (SQUARE * 128 + 127, "127, 255"),
        (SQUARE.astype(np.float32) - 1, "-1, 0"),
        (np.full((3, 3), np.inf, np.float32), "inf"),
        (np.full((3, 3), np.nan, np.float32), "nan"),
        (np.arange(256, dtype=np.uint8).reshape(16, 16), "0 to 255 (256 of them)"),
    ],
)
def test_class_labels_and_pictures_are_no_masks(stored, words):
    with pytest.raises(UserError) as caught:
        pairs.binarise(stored, "masks/a.png")
    assert str(caught.value) == (
        f"masks/a.png has the values {words} and is no mask of two values (class labels, or a "
        "picture?); give 255 (or 1) to vessels and 0 to all else"
    )


# ---- Splits --------------------------------------------------------------------------------------


def test_folds_partition_the_images(source):
    folds = [prepare(source, folds=4, fold=fold, seed=5) for fold in range(4)]
    held_out = [names(dataset, "validation") for dataset in folds]
    assert sorted(map(len, held_out)) == [1, 1, 2, 2]
    assert sorted(itertools.chain(*held_out)) == [f"{stem}.png" for stem in STEMS]
    for dataset, validation in zip(folds, held_out, strict=True):
        assert sorted(names(dataset, "train") + validation) == [f"{stem}.png" for stem in STEMS]
        assert names(dataset, "train") == sorted(names(dataset, "train"))


def test_folds_are_a_function_of_the_seed(source):
    first, again, other = (
        [names(prepare(source, folds=2, fold=fold, seed=seed), "validation") for fold in range(2)]
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_folds_do_not_depend_on_suffixes(source):
    before = names(prepare(source), "validation")
    (source / "images" / "a.png").rename(source / "images" / "a.PNG")
    assert [n.lower() for n in names(prepare(source), "validation")] == before


def test_a_split_file_leaves_out_what_it_does_not_name(source):
    """So that images that have no mask yet may stay where they are."""
    (source / "masks" / "f.png").unlink()
    (source / "images" / "e.png").write_bytes(b"damaged")
    dataset = prepare(source, split_file(source, {"train": ["a.png", "b.JPG"], "test": ["c"]}))
    assert tuple(dataset) == ("train", "test")
    assert names(dataset, "train") == ["a.png", "b.png"]


# ---- Mistakes ------------------------------------------------------------------------------------

IMAGE, MASK = "images/b.png", "masks/b.png"


def put(name, array):
    return lambda source: write(source / name, array)


def put_bytes(name, content):
    return lambda source: (source / name).write_bytes(content)


def remove(*names):
    def make(source):
        for name in names:
            path = source / name
            if path.is_dir():
                for each in path.iterdir():
                    each.unlink()
                path.rmdir()
            else:
                path.unlink()

    return make


def replace(name, make_new):
    def make(source):
        (source / name).unlink()
        make_new(source / name)

    return make


def cut(name):
    def make(source):
        content = (source / name).read_bytes()
        (source / name).write_bytes(content[: len(content) // 2])

    return make


def pages(path):
    assert cv2.imwritemulti(str(path.with_suffix(".tif")), [picture(1)] * 3)


def float_tiff(value):
    array = np.zeros((12, 10), np.float32)
    array[0, 0] = value
    return array


NAN = np.full((12, 10), np.nan, np.float32)
FILES = {
    "no source": (lambda source: remove("images", "masks", "")(source), ["is no folder"]),
    "source is a file": (
        lambda source: [remove("images", "masks", "")(source), source.write_text("")],
        ["config.data.source=", "is no folder"],
    ),
    "no images/": (remove("images"), ["cannot read the folder", "data/images (No such file"]),
    "no masks/": (remove("masks"), ["cannot read the folder", "data/masks (No such file"]),
    "images is a file": (
        lambda source: [remove("images")(source), put_bytes("images", b"")(source)],
        ["cannot read the folder", "data/images (Not a directory)"],
    ),
    "empty folder": (
        lambda source: [remove("images")(source), (source / "images").mkdir()],
        ["data/images has no .png", "among its 0 files"],
    ),
    "no image among files": (
        lambda source: [
            remove("masks")(source),
            (source / "masks").mkdir(),
            put_bytes("masks/a.dcm", b"")(source),
        ],
        ["data/masks has no .png", "among its 1 files"],
    ),
    "unpaired image": (remove(MASK), [IMAGE, "has no mask", "masks/b.*", "add the mask"]),
    "unpaired mask": (remove(IMAGE), [MASK, "has no image", "images/b.*", "add the image"]),
    "names of another case": (
        lambda source: (source / MASK).rename(source / "masks/B.png"),
        ["masks/B.png has no image", "(first of 2 problems; --mode=check lists all)"],
    ),
    "two images of one name": (
        put("images/b.bmp", picture(1)),
        ["data/images has both b.bmp and b.png", "remove or rename one"],
    ),
    "two masks of one name": (
        put("masks/b.tif", SQUARE),
        ["data/masks has both b.png and b.tif", "remove or rename one"],
    ),
    "unprintable name": (
        put_bytes("images/x\n.png", b""),
        ["images/x\\n.png'", "name that cannot be printed", "rename"],
    ),
    "name that is no Unicode": (
        put_bytes("images/x\udcff.png", b""),
        ["images/x\\udcff.png'", "name that cannot be printed", "rename"],
    ),
    "mask of another size": (
        put(MASK, SQUARE.T.copy()),
        [f"{MASK} is 10 high and 12 wide", f"{IMAGE} is 12 high and 10 wide"],
    ),
    "truncated image": (cut(IMAGE), [IMAGE, "bytes) is damaged or no image"]),
    "truncated mask": (cut(MASK), [MASK, "bytes) is damaged or no image"]),
    "text named .png": (put_bytes(IMAGE, b"not an image"), [f"{IMAGE} (12 bytes) is damaged or"]),
    "zero bytes": (put_bytes(MASK, b""), [f"{MASK} (0 bytes) is damaged or no image"]),
    "directory named .png": (
        replace(IMAGE, Path.mkdir),
        ["cannot read ", f"{IMAGE} (Is a directory)", "give an image file that may be read"],
    ),
    "link to nowhere": (
        replace(MASK, lambda path: path.symlink_to("gone.png")),
        ["cannot read ", f"{MASK} (No such file"],
    ),
    "link to itself": (
        replace(IMAGE, lambda path: path.symlink_to(path)),
        ["cannot read ", f"{IMAGE} (Too many levels of symbolic links)"],
    ),
    "TIFF of three pages as image": (
        replace(IMAGE, pages),
        ["images/b.tif has 3 pages", "only the one that is meant"],
    ),
    "TIFF of three pages as mask": (replace(MASK, pages), ["masks/b.tif has 3 pages"]),
    "NaN in an image": (
        lambda source: [remove(IMAGE)(source), put("images/b.tif", float_tiff(np.nan))(source)],
        ["images/b.tif has values from nan to nan", "not finite"],
    ),
    "all-NaN image": (
        lambda source: [remove(IMAGE)(source), put("images/b.tif", NAN)(source)],
        ["images/b.tif has values from nan to nan", "not finite"],
    ),
    "infinite image": (
        lambda source: [remove(IMAGE)(source), put("images/b.tif", float_tiff(np.inf))(source)],
        ["images/b.tif has values from 0.0 to inf", "not finite"],
    ),
    "all-NaN mask": (
        lambda source: [remove(MASK)(source), put("masks/b.tif", NAN)(source)],
        ["masks/b.tif has the values nan", "give 255"],
    ),
    "class labels": (
        put(MASK, np.repeat(np.uint8([0, 1, 2, 3]), 30).reshape(12, 10)),
        [f"{MASK} has the values 0, 1, 2, 3 and is no mask of two"],
    ),
    "picture as mask": (
        put(MASK, np.arange(120, dtype=np.uint8).reshape(12, 10) * 2),
        [f"{MASK} has the values 0 to 238 (120 of them)", "give 255 (or 1) to vessels"],
    ),
    "probabilities as mask": (
        lambda source: [
            remove(MASK)(source),
            put("masks/b.tif", np.linspace(0, 1, 120, dtype=np.float32).reshape(12, 10))(source),
        ],
        ["masks/b.tif has the values 0 to 1 (120 of them)"],
    ),
    "no vessel anywhere": (
        lambda source: [write(source / f"masks/{stem}.png", SQUARE * 0) for stem in STEMS],
        ["the 4 training masks in ", "are all empty", "give masks with vessels"],
    ),
}


def assert_one_sentence(prepare_it, parts):
    with pytest.raises(UserError) as caught:
        prepare_it()
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
    assert "\n" not in message


@pytest.mark.parametrize("mistake", FILES)
def test_a_mistake_in_the_files_is_one_sentence(source, mistake, capfd):
    make, parts = FILES[mistake]
    make(source)
    assert_one_sentence(lambda: prepare(source), parts)
    assert capfd.readouterr() == ("", "")


SPLIT_FILES = {
    "no JSON": ('{"train": [', ["splits.json is not readable as JSON", "line 1"]),
    "nested too deeply": ("[" * 100_000, ["splits.json is not readable as JSON", "recursion"]),
    "no object": (["a", "b"], ["splits.json holds ['a', 'b']", "give an object"]),
    "no split": ({}, ["splits.json holds {}", "give an object"]),
    "unknown split": ({"train": ["a"], "val": ["b"]}, ["splits.json has the split 'val'", "test"]),
    "empty train": ({"train": []}, ["splits.json: the split train is []", "list of names"]),
    "no list": ({"train": "a"}, ["splits.json: the split train is 'a'", "list of names"]),
    "unknown image": (
        {"train": ["a", "angiogram_without_a_file.png"]},
        ["splits.json: the split train names 'angiogram_without_a_file.png', which is no image"],
    ),
    "number as name": ({"train": [7]}, ["splits.json: the split train names 7,"]),
    "image twice in a split": (
        {"train": ["a", "a.png"]},
        ["splits.json: a.png is named in train and again in train"],
    ),
    "image in two splits": (
        {"train": ["a", "b"], "validation": ["c", "b"]},
        ["splits.json: b is named in train and again in validation", "keep one"],
    ),
}


@pytest.mark.parametrize("mistake", SPLIT_FILES)
def test_a_mistake_in_the_split_file_is_one_sentence(source, mistake, capfd):
    content, parts = SPLIT_FILES[mistake]
    path = split_file(source, content)
    assert_one_sentence(lambda: prepare(source, path), parts)
    assert capfd.readouterr() == ("", "")


def test_an_image_without_mask_that_a_split_names_is_one_sentence(source):
    (source / MASK).unlink()
    path = split_file(source, {"train": ["a", "b"]})
    assert_one_sentence(lambda: prepare(source, path), [f"{IMAGE} has no mask"])


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"splits": "gone.json"}, ["config.data.folder.splits=gone.json (No such file"]),
        ({"splits": "."}, ["config.data.folder.splits=. (Is a directory)"]),
        ({"folds": 7}, ["config.data.folder.folds is 7", "only 6 images", "give fewer"]),
        ({"folds": 1}, ["config.data.folder.folds is 1; give 2 or more"]),
        ({"folds": 3, "fold": 3}, ["config.data.folder.fold is 3", "a fold from 0 to 2"]),
        ({"folds": 3, "fold": -1}, ["config.data.folder.fold is -1", "a fold from 0 to 2"]),
    ],
)
def test_an_argument_that_does_not_fit_is_one_sentence(source, arguments, parts):
    assert_one_sentence(lambda: prepare(source, **arguments), parts)


def test_no_source_is_one_sentence():
    assert_one_sentence(lambda: prepare(""), ["config.data.source= is no folder", "images/"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
@pytest.mark.parametrize("name", [IMAGE, MASK, "images"])
def test_a_file_that_may_not_be_read_is_one_sentence(source, name):
    (source / name).chmod(0)
    try:
        assert_one_sentence(lambda: prepare(source), [name, "(Permission denied)"])
    finally:
        (source / name).chmod(0o700)


def test_all_problems_of_a_folder_are_collected(source):
    remove("masks/a.png")(source)
    cut("images/b.png")(source)
    put("masks/b.png", SQUARE + 1)(source)
    path = split_file(source, {"train": ["a", "b", "x"], "val": ["c"]})
    layout = folder.lay_out(str(source), path, 5, 0, 0)
    assert len(layout.problems) == 3
    assert ["'x'" in layout.problems[0], "'val'" in layout.problems[1]] == [True, True]
    assert "images/a.png has no mask" in layout.problems[2]
    (pair,) = layout.splits["train"]
    reading = pairs.read(pair)
    assert [(problem.kind, problem.name) for problem in reading.problems] == [
        ("unreadable", "images/b.png"),
        ("mask_values", "masks/b.png"),
    ]
    assert (reading.image, reading.mask) == (None, None)


# ---- The configuration ---------------------------------------------------------------------------


def get_config(argument=""):
    spec = importlib.util.spec_from_file_location("folder_config", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


@pytest.mark.parametrize(("argument", "of_arcade"), [("compact,3", ""), ("gpu,3", "gpu")])
def test_the_argument_is_the_fold_and_the_training(argument, of_arcade):
    assert get_config().data.folder.fold == 0
    config = get_config(argument)
    assert (config.data.name, config.data.folder.fold) == ("folder", 3)
    trained = tprnet_compact.get_config(of_arcade)
    for part in ("model", "augment", "optim"):
        assert config[part] == trained[part]
    assert (config.train.batch, config.train.epochs) == (trained.train.batch, trained.train.epochs)
    assert config.lock().is_locked


def test_an_unknown_argument_is_named():
    with pytest.raises(UserError, match=r"has no argument '-1'; give the number of a fold"):
        get_config("-1")


def test_what_is_known_of_a_part_is_of_its_examples(source):
    sources = loader.hold_out(prepare(source), 1, 0)
    for part in sources.values():
        names = [part[index]["name"].decode() for index in range(len(part))]
        assert [image.name for image in loader.known(part)] == names
    assert loader.side(loader.known(sources["train"])) == max(sources["train"][0]["image"].shape)


def test_images_of_several_sizes_have_no_side(source):
    path = next((source / "images").iterdir())
    height, width = cv2.imread(str(path)).shape[:2]
    for kind in ("images", "masks"):
        cv2.imwrite(str(source / kind / "large.png"), np.zeros((2 * height, width), np.uint8))
    assert loader.side(loader.known(prepare(source)["train"])) is None
