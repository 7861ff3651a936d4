"""Work in threads: order, errors, and how far it runs ahead."""

import itertools
import threading
import time

import pytest

from tcl_d2.utils.threads import map_ahead


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_results_come_in_the_order_of_their_items(num_threads):
    def wait(number: int) -> int:
        time.sleep(0.01 * (number % 3))
        return number * number

    assert list(map_ahead(wait, iter(range(8)), num_threads)) == [number * number for number in range(8)]


@pytest.mark.parametrize("num_threads", [0, 2])
def test_an_error_is_raised_in_its_turn(num_threads):
    results = map_ahead(lambda number: 1 // (2 - number), range(5), num_threads)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_few_items_are_taken_ahead_and_none_once_nobody_takes_results():
    called, names = [], set()

    def remember(number: int) -> int:
        names.add(threading.current_thread().name)
        called.append(number)
        return number

    results = map_ahead(remember, itertools.count(), 2)
    assert next(results) == 0 and len(called) <= 5
    results.close()
    count = len(called)
    time.sleep(0.02)
    assert len(called) == count <= 5 and threading.current_thread().name not in names
