"""Parts of a job on several cores."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from consilia.parallel import CORES, in_order


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    first_waits = threading.Event()

    def square(number: int) -> int:
        if number == 0 and count > CORES > 1:
            first_waits.wait(10)  # until another one is done
        else:
            first_waits.set()
        return number * number

    assert list(in_order(square, range(count))) == [number * number for number in range(count)]


def test_few_items_are_taken_before_the_first_result_is() -> None:
    taken = []

    def numbers() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    results = in_order(lambda number: number, numbers())
    assert next(results) == 0
    assert len(taken) <= 2 * CORES + 2
    assert sum(results) == sum(range(1000))


@pytest.mark.parametrize("at", [0, 5])
def test_an_error_in_the_work_is_raised_where_its_result_was_due(at: int) -> None:
    def work(number: int) -> int:
        if number == at:
            raise ValueError(f"item {number}")
        return number

    results = in_order(work, range(20))
    with pytest.raises(ValueError, match=f"item {at}"):
        list(results)


def test_an_error_of_the_source_is_raised() -> None:
    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(in_order(lambda number: number, source()))
