"""Work in threads, beside what the main thread does."""

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import tqdm


def in_threads(function: Callable, items: Iterable, description: str) -> list:
    """Maps a function over items on all cores, under a bar that long work alone shows."""
    items = list(items)
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        results = pool.map(function, items)
        bar = tqdm.tqdm(
            results, desc=description, total=len(items), unit="image", delay=1, leave=False
        )
        return list(bar)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C need not wait for what has not begun.


def ahead(items: Iterable, count: int) -> Iterator:
    """The same items, so many of which are drawn ahead in a thread.

    What drawing one raises is raised here in its place.
    """
    drawn = queue.Queue(count)
    stop = threading.Event()

    def put(kind: str, value) -> None:
        while not stop.is_set():
            try:
                return drawn.put((kind, value), timeout=0.1)
            except queue.Full:
                continue

    def draw() -> None:
        try:
            for item in items:
                put("item", item)
                if stop.is_set():
                    return
            put("end", None)
        except BaseException as error:  # To be raised where it is waited for.
            put("error", error)

    threading.Thread(target=draw, daemon=True).start()
    try:
        while True:
            kind, value = drawn.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
