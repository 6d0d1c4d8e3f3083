import threading
import time

import pytest

from tprnet_jax.runtime.threads import ahead


def test_items_keep_their_order_and_are_drawn_in_another_thread():
    drawn_by = []

    def items():
        for number in range(50):
            drawn_by.append(threading.current_thread())
            yield number

    assert list(ahead(items(), 3)) == list(range(50))
    assert threading.main_thread() not in drawn_by


def test_so_many_are_drawn_ahead_and_no_more():
    drawn = []

    def items():
        for number in range(20):
            drawn.append(number)
            yield number

    found = ahead(items(), 2)
    assert next(found) == 0
    deadline = time.monotonic() + 5
    while len(drawn) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert drawn == [0, 1, 2, 3]  # One given out, two waiting, one in hand.
    assert list(found) == list(range(1, 20))


def test_what_drawing_raises_is_raised_in_its_place():
    def items():
        yield 1
        raise ValueError("no more")

    found = ahead(items(), 5)
    assert next(found) == 1
    with pytest.raises(ValueError, match="no more"):
        next(found)


def test_drawing_ends_when_nobody_wants_more():
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    found = ahead(items(), 1)
    next(found)
    found.close()
    assert closed.wait(5)
