"""A user's angiograms in; masks, and what can be made of them, out."""

import contextlib
import dataclasses
import os
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

import tprnet_jax
from tprnet_jax import config as configuration
from tprnet_jax import segmenter
from tprnet_jax.data import inputs, video
from tprnet_jax.data.angiogram import Angiogram
from tprnet_jax.data.images import read_grey
from tprnet_jax.data.inputs import Input
from tprnet_jax.report import destination, dicom_seg, html, outputs, pictures
from tprnet_jax.report.destination import OF_FILE, OF_IMAGE, Earlier
from tprnet_jax.report.journal import Journal
from tprnet_jax.report.outputs import Segmented
from tprnet_jax.runtime import devices, signals
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.runtime.files import write_or_tell, write_whole
from tprnet_jax.runtime.threads import ahead
from tprnet_jax.segmenter import Segmentation, Segmenter

OUTPUTS = (*OF_IMAGE, *OF_FILE)
WRITERS = 2
MOST_WAITING = 8  # Files to write that may wait, so that memory stays bounded.


@dataclasses.dataclass
class Work:
    """A file on its way.

    Attributes:
        source: The file.
        angiogram: What it holds.
        record: Its entry in the manifest.
        masks: Of the frames so far, as bits.
        frames: What is being written of them.
    """

    source: Input
    angiogram: Angiogram
    record: dict
    masks: list[np.ndarray] = dataclasses.field(default_factory=list)
    frames: list[Future] = dataclasses.field(default_factory=list)


def run(config: ConfigDict, workdir: Path) -> None:
    """Segments `config.predict.input` into `config.predict.output`.

    Writes `config.predict.outputs` of each angiogram, each file whole or not at all,
    `manifest.json` and `report.html`. What has all its outputs is skipped. A file that cannot be
    segmented is named, and the rest goes on.

    Args:
        config: With the networks of the model.
        workdir: A run's, or a model file.

    Raises:
        UserError: Input, output or model cannot be used, or, at the end, files were left out.
    """
    listing = inputs.find(config.predict.input)
    configuration.check(config)
    _check_outputs(config.predict)
    model = segmenter.of(config, workdir)
    output = destination.make(config.predict, listing)
    manifest, earlier = destination.begin_manifest(config.predict, model, listing, output)
    if devices.is_first():
        for sentence in (*listing.notes, *listing.problems):
            say(sentence)
    start = time.monotonic()
    share = inputs.share(listing.inputs, jax.process_index(), jax.process_count())
    journal = Journal(len(share), pictures.BUDGET // jax.process_count())
    records, entries = _segment(Job(config.predict, output, model, earlier, journal), share)
    manifest["seconds"] = round(time.monotonic() - start, 3)
    destination.end_manifest(manifest, earlier, listing, records, output)
    failed = len(listing.problems) + sum("error" in record for record in records)
    total = len(listing.problems) + len(records)
    if devices.is_first():
        write_whole(
            output / "report.html", html.prediction(manifest, entries, config.predict.input)
        )
        done = sum(destination.DONE in record.get("notes", ()) for record in records)
        before = f", {done} of them before" if done else ""
        print(_legible(f"{total - failed} of {total} files segmented into {output}{before}"))
    if failed:
        raise UserError(f"{failed} of {total} files could not be segmented; each is named above")


def _check_outputs(config: ConfigDict) -> None:
    unknown = set(config.outputs) - set(OUTPUTS)
    if unknown or not config.outputs:
        raise UserError(
            f"config.predict.outputs is {','.join(map(str, config.outputs))!r}; choose among "
            f"{', '.join(OUTPUTS)}"
        )


def _segment(job: "Job", files: list[Input]) -> tuple[list[dict], list[dict]]:
    """Runs the job; what came of each file and image of all processes, which end together.

    Raises:
        UserError: One of them could not write.
    """
    stopped = None
    try:
        job.run(files)
    except UserError as error:
        stopped = str(error)
    except signals.Interrupted as interrupt:
        message = "interrupted; the same command goes on with the rest"
        raise signals.Interrupted(message, interrupt.status - 128) from None
    own = job.records, job.journal.entries, stopped
    records, entries, stops = zip(*devices.allgather_json(own), strict=True)
    if any(stops):
        raise UserError(next(filter(None, stops)))
    return list(chain.from_iterable(records)), list(chain.from_iterable(entries))


def say(text: str) -> None:
    """Prints a line beside the bar."""
    tqdm.tqdm.write(_legible(text), file=sys.stderr)


def _legible(text: str) -> str:
    """Text in one line that can be printed, whatever is in the names of files."""
    return "".join(x if x.isprintable() else "?" for x in text)


class Job:
    """The segmentation of files by one process.

    Attributes:
        records: What came of each file.
        journal: What was found in each image.
        seen: Sizes at which the networks have seen an image.
        writers: The file that each output is of.
    """

    def __init__(
        self,
        config: ConfigDict,
        output: Path,
        model: Segmenter,
        earlier: Earlier,
        journal: Journal,
    ):
        self.config, self.output, self.model = config, output, model
        self.earlier, self.journal = earlier, journal
        self.records, self.seen, self.writers = [], set(), {}

    def run(self, files: Iterable[Input]) -> None:
        """Reads, segments and writes, each beside the other two."""
        batch, scale = self.config.batch, self.config.scale
        waiting, writing = deque(), deque()

        def images() -> Iterator[np.ndarray]:
            for work, image in ahead(self._read(files), batch + 2):
                waiting.append((work, image))
                yield image

        bar = tqdm.tqdm(desc="predict", unit="image", disable=not devices.is_first())
        with bar, ThreadPoolExecutor(WRITERS) as pool:
            for found, seconds in _timed(self.model.stream(images(), batch, scale)):
                work, image = waiting.popleft()
                writing += self._write(pool, work, image, found, seconds)
                bar.update()
                while len(writing) > MOST_WAITING:
                    writing.popleft().result()
            for each in writing:
                each.result()

    # ---- Reading ---------------------------------------------------------------------------------

    def _read(self, files: Iterable[Input]) -> Iterator[tuple[Work, np.ndarray]]:
        """Every image of every file that is to be segmented, with the file it is from."""
        for source in files:
            record = {"input": str(source.path)}
            self.records.append(record)
            try:
                yield from self._frames(source, record)
            except UserError as error:
                self._fail(record, error)

    @staticmethod
    def _fail(record: dict, error: UserError) -> None:
        record["error"] = str(error)
        say(str(error))

    def _frames(self, source: Input, record: dict) -> Iterator[tuple[Work, np.ndarray]]:
        if source.name in self.earlier.other:
            raise UserError(
                f"{source.path} is not the file that {self.output} has outputs of under this name; "
                "give another config.predict.output, or --config.predict.overwrite=True"
            )
        angiogram = inputs.open_angiogram(source.path)
        work = Work(source, angiogram, record)
        paths = self._paths(work)
        self._claim(paths, source.path)
        record |= {
            "size": angiogram.size,
            "seen": self.model.seen(angiogram.size, self.config.scale),
            "frames": angiogram.count,
            "spacing_mm": angiogram.spacing,
            "notes": list(angiogram.notes),
            "outputs": [path.relative_to(self.output).as_posix() for path in paths],
        }
        is_done = source.name in self.earlier.same and all(path.is_file() for path in paths)
        if is_done and not self.config.overwrite:
            record["notes"].append(destination.DONE)
            self._look_back(work)
            return
        self._check_size(work)
        for note in record["notes"]:
            say(note)
        self._make_folder((self.output / source.name).parent)
        for image in angiogram.frames():
            yield work, image

    def _look_back(self, work: Work) -> None:
        """Enters into the journal what was found before, as far as there are masks of it."""
        if "mask" not in self.config.outputs:
            return
        frames = work.angiogram.frames()
        # What has been damaged since is not shown; it is no failure of this prediction.
        with contextlib.suppress(UserError, OSError, ValueError, LookupError, TypeError):
            for number in range(1, work.angiogram.count + 1):
                mask = read_grey(self._path(work, OF_IMAGE["mask"], number)) > 0
                is_read = work.angiogram.is_run or self.journal.wants_picture()
                self._enter(work, number, next(frames) if is_read else None, mask)

    def _enter(
        self,
        work: Work,
        number: int,
        image: np.ndarray | None,
        mask: np.ndarray,
        seconds: float | None = None,
    ) -> None:
        """Notes what was found in an image, whose outputs are there."""
        has_tree = "tree" in self.config.outputs
        tree = self._path(work, OF_IMAGE["tree"], number).read_bytes() if has_tree else None
        place = number, work.angiogram.count
        self.journal.enter(work.record["input"], place, image, mask, seconds, tree)

    def _claim(self, paths: list[Path], source: Path) -> None:
        """Keeps the names of outputs for a file."""
        taken = next((path for path in paths if path in self.writers), None)
        if taken:
            raise UserError(
                f"{source} would write {taken.name}, and so does {self.writers[taken]}; rename one "
                "of them"
            )
        if not paths:
            raise UserError(
                f"{source} has none of config.predict.outputs={','.join(self.config.outputs)} (seg "
                "is of DICOM alone, video of runs alone); add mask"
            )
        longest = max((path.name for path in paths), key=lambda name: len(os.fsencode(name)))
        if len(os.fsencode(longest)) > (most := os.pathconf(self.output, "PC_NAME_MAX")):
            raise UserError(
                f"{source} would write {longest}, a name of more than the {most} bytes that the "
                "folder can have; rename it"
            )
        self.writers |= dict.fromkeys(paths, source)

    @staticmethod
    def _make_folder(folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the folder {folder} ({error.strerror}); give another "
                "config.predict.output"
            ) from error

    def _check_size(self, work: Work) -> None:
        path, size = work.source.path, work.angiogram.size
        self.model.check_size(path, size, self.config.scale, self.config.batch)
        seen = work.record["seen"]
        if seen not in self.seen:
            self.seen.add(seen)
            say(f"The first image of {seen[0]} x {seen[1]}: compiling takes some seconds.")

    # ---- Writing ---------------------------------------------------------------------------------

    def _paths(self, work: Work) -> list[Path]:
        """All that is to be written of a file."""
        images = range(1, work.angiogram.count + 1)
        kinds = [kind for kind in self.config.outputs if kind in OF_IMAGE]
        whole = [kind for kind in self.config.outputs if self._applies(kind, work.angiogram)]
        return [self._path(work, OF_IMAGE[kind], number) for number in images for kind in kinds] + [
            self._path(work, OF_FILE[kind]) for kind in whole
        ]

    def _path(self, work: Work, ending: str, number: int = 0) -> Path:
        of_run = f"_{number:04d}" if number and work.angiogram.is_run else ""
        return self.output / f"{work.source.name}{of_run}{ending}"

    @staticmethod
    def _applies(kind: str, angiogram: Angiogram) -> bool:
        return {"seg": angiogram.header is not None, "video": angiogram.is_run}.get(kind, False)

    def _write(
        self,
        pool: ThreadPoolExecutor,
        work: Work,
        image: np.ndarray,
        found: Segmentation,
        seconds: float,
    ) -> list[Future]:
        """Begins to write what is wanted of an image and, with the last one, of its file."""
        work.masks.append(np.packbits(found.mask))
        number = len(work.masks)
        segmented = Segmented(work.source.path.name, image, *found, work.angiogram.spacing)
        work.frames.append(pool.submit(self._write_image, work, number, segmented, seconds))
        if number < work.angiogram.count:
            return [work.frames[-1]]
        return [work.frames[-1], pool.submit(self._write_file, work)]

    def _write_image(self, work: Work, number: int, found: Segmented, seconds: float) -> None:
        for kind in self.config.outputs:
            if kind in OF_IMAGE:
                path = self._path(work, OF_IMAGE[kind], number)
                write_or_tell(path, getattr(outputs, kind)(found))
        self._enter(work, number, found.image, found.mask, seconds)

    def _write_file(self, work: Work) -> None:
        for frame in work.frames:  # Taken up before this, so that waiting for them ends.
            frame.result()
        try:
            for kind in self.config.outputs:
                if self._applies(kind, work.angiogram):
                    {"seg": self._write_seg, "video": self._write_video}[kind](work)
        except UserError as error:
            self._fail(work.record, error)

    def _write_seg(self, work: Work) -> None:
        path, header = self._path(work, OF_FILE["seg"]), work.angiogram.header
        masks = np.stack(list(self._masks(work)))
        dicom_seg.write_segmentation(path, header, masks, self.model.name, tprnet_jax.__version__)

    def _write_video(self, work: Work) -> None:
        frames = zip(work.angiogram.frames(), self._masks(work), strict=True)
        pictures = (outputs.drawn(image, mask) for image, mask in frames)
        video.write_video(self._path(work, OF_FILE["video"]), pictures, work.angiogram.rate or 15)

    @staticmethod
    def _masks(work: Work) -> Iterator[np.ndarray]:
        height, width = work.angiogram.size
        for bits in work.masks:
            yield np.unpackbits(bits, count=height * width).reshape(height, width).astype(bool)


def _timed(found: Iterable[Segmentation]) -> Iterator[tuple[Segmentation, float]]:
    """Each, with the seconds since the one before."""
    before = time.monotonic()
    for each in found:
        now = time.monotonic()
        yield each, now - before
        before = now
