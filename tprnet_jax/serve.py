"""A page in the browser to try a model: an angiogram is dropped there, and its vessels shown."""

import base64
import contextlib
import functools
import itertools
import json
import threading
import webbrowser
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

import tprnet_jax
from tprnet_jax import config as configuration
from tprnet_jax import segmenter
from tprnet_jax.data import images, inputs, scene
from tprnet_jax.data.angiogram import Angiogram
from tprnet_jax.models.umamba import UMamba
from tprnet_jax.report import graph, outputs
from tprnet_jax.report.destination import OF_IMAGE
from tprnet_jax.report.outputs import Segmented
from tprnet_jax.runtime import signals
from tprnet_jax.runtime.errors import UserError
from tprnet_jax.segmenter import Segmenter

PAGE = Path(outputs.__file__).parent / "page" / "serve.html"
MOST_PIXELS = 2**27  # Of all frames of a run, as the browser keeps them: 128 of 1024 x 1024.
SUFFIXES = {*images.SUFFIXES, *inputs.VIDEOS, *inputs.DICOMS}


def run(config: ConfigDict, workdir: Path) -> None:
    """Serves the page at `config.serve.host` and `port` until it is interrupted.

    Args:
        config: With the networks of the model.
        workdir: A run's, or a model file.

    Raises:
        UserError: A package is missing, or the address or the model cannot be used.
    """
    web = _web()
    configuration.check(config)
    host = config.serve.host
    with web.listen(host, config.serve.port) as listener:
        model = segmenter.of(config, workdir)
        _warm_up(model, config.predict.scale)
        print(f"{web.url(listener)} segments with {model.name}; Ctrl-C ends it", flush=True)
        if host not in web.LOOPBACK:
            print(f"Whoever reaches {host} can use the page: it has no password", flush=True)
        if config.serve.open:
            threading.Thread(target=_open, args=(web.url(listener),), daemon=True).start()
        with ThreadPoolExecutor(1) as worker, signals.noted():
            app = application(config, model, worker, listener.getsockname()[0])
            web.server(app).run(sockets=[listener])


def _web():
    """The module `web`, whose packages come with an optional installation.

    Raises:
        UserError: They are missing.
    """
    try:
        from tprnet_jax.runtime import web
    except ImportError as error:
        raise UserError(
            f'--mode=serve needs {error.name}; install it with pip install -e ".[serve]"'
        ) from None
    return web


def _warm_up(model: Segmenter, scale: float) -> None:
    """Compiles for images of the training's size, which most are brought to."""
    height, width = _usual_size(model)
    print(f"Compiling for {height} x {width} pixels, which takes some seconds", flush=True)
    phantom = (scene.draw(0, 0, max(height, width))[0] / 255).astype(np.float32)
    list(model.stream([phantom[:height, :width]], scale=scale))


def _usual_size(model: Segmenter) -> tuple[int, int]:
    """Height and width that most images are brought to."""
    net = model.cascade.global_net
    if isinstance(net, UMamba) and net.variant == "enc":  # It takes no others.
        return tuple(net.size)
    return (model.side or 512,) * 2


def _open(url: str) -> None:
    """Opens a browser, where there is one; those of a terminal would take this one."""
    with contextlib.suppress(webbrowser.Error):
        browser = webbrowser.get()
        if type(browser) is not webbrowser.GenericBrowser:
            browser.open(url)


def application(
    config: ConfigDict, model: Segmenter, worker: ThreadPoolExecutor, address: str
) -> Any:
    """The page and what answers it, as an ASGI application.

    Args:
        config: All of it.
        model: Segments what is uploaded.
        worker: Of one thread, in which it does.
        address: Of this machine, by which browsers may call it, as by `config.serve.host`.
    """
    web = _web()
    most = int(config.serve.max_mb * 1e6)
    about = {
        "model": model.name,
        "version": tprnet_jax.__version__,
        "most": most,
        "colours": {"line": graph.LINE, **graph.DOTS},
    }
    answer = functools.partial(lines, model, config.predict.scale)
    uploads = web.Uploads(answer, most, SUFFIXES, worker)
    hosts = {config.serve.host.lower(), address, *web.LOOPBACK}
    return web.application(PAGE, about, uploads, hosts)


# ---- What is shown -------------------------------------------------------------------------------


def lines(model: Segmenter, scale: float, path: Path, name: str) -> Iterator[dict[str, Any]]:
    """What the page shows of a file, for JSON.

    Args:
        model: Segments it.
        scale: See `Segmenter.stream`.
        path: The file.
        name: What the user calls it.

    Yields:
        First "name", "size" and "seen" (height and width of the file, and as the networks see it),
        "frames" (that will follow), "spacing_mm" and "notes". Then of each frame "frame", counted
        from 1, "totals", see `totals`, and "files": "name" and "data" (base64) of its "image" and
        of its "mask", "overlay" and "tree" as --mode=predict writes them.

    Raises:
        UserError: The file holds no angiogram, is damaged, too small or too large.
    """
    angiogram = inputs.open_angiogram(path)
    model.check_size(path, angiogram.size, scale)
    frames = angiogram.frames()
    first = next(frames)  # Damage shows when pixels are read.
    height, width = angiogram.size
    count = min(angiogram.count, max(1, MOST_PIXELS // (height * width)))
    yield {
        "name": name,
        "size": angiogram.size,
        "seen": model.seen(angiogram.size, scale),
        "frames": count,
        "spacing_mm": angiogram.spacing,
        "notes": [note.replace(str(path), name) for note in _notes(angiogram, count)],
    }
    shown, given = itertools.tee(itertools.islice(itertools.chain([first], frames), count))
    found = zip(shown, model.stream(given, scale=scale), strict=True)
    for number, (image, of_image) in enumerate(found, start=1):
        stem = inputs.without_suffix(Path(name)).name + (
            f"_{number:04d}" if angiogram.is_run else ""
        )
        segmented = Segmented(name, image, *of_image, angiogram.spacing)
        yield {"frame": number, **_shown(segmented, stem)}


def _notes(angiogram: Angiogram, count: int) -> Iterator[str]:
    yield from angiogram.notes
    if count < angiogram.count:
        yield f"only the first {count} of {angiogram.count} frames; --mode=predict takes all"


def _shown(found: Segmented, stem: str) -> dict[str, Any]:
    contents = {kind: getattr(outputs, kind)(found) for kind in ("mask", "overlay", "tree")}
    files = {kind: (stem + OF_IMAGE[kind], content) for kind, content in contents.items()}
    grey = np.rint(found.image * 255).astype(np.uint8)
    files["image"] = (f"{stem}.png", images.encode_png(grey))
    return {
        "totals": totals(found.mask, json.loads(contents["tree"])),
        "files": {
            kind: {"name": name, "data": base64.b64encode(content).decode()}
            for kind, (name, content) in files.items()
        },
    }


def totals(mask: np.ndarray, tree: dict[str, Any]) -> dict[str, float]:
    """Measures of a whole mask and its tree.

    Args:
        mask: Boolean (height, width).
        tree: Its `graph.vessel_tree`.

    Returns:
        "branches", their "length" in pixels, the mask's "area" in pixels and its "share" of the
        image; with a spacing also "length_mm" and "area_mm2".
    """
    edges, spacing = tree["edges"], tree["spacing_mm"]
    area = int(np.count_nonzero(mask))
    found = {
        "branches": len(edges),
        "length": sum(edge["length"] for edge in edges),
        "area": area,
        "share": area / mask.size,
    }
    if spacing is not None:
        length = sum(edge["length_mm"] for edge in edges)
        found |= {"length_mm": length, "area_mm2": area * spacing[0] * spacing[1]}
    return found
