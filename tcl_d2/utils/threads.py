"""Work in threads beside the main one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    num_threads: int,
) -> Iterator[Result]:
    """Yield function(item) of each item in their order, computed in threads ahead of what is taken.

    At most twice as many results as threads are held. The items are taken in the thread that takes the results, where
    the function's errors are raised too. When no more results are taken, no more calls begin.

    Args:
        function: is called in a thread.
        items: may be endless.
        num_threads: number of threads; 0 to compute each result when it is taken.
    """
    if num_threads == 0:
        yield from map(function, items)
        return

    pool = ThreadPoolExecutor(num_threads)
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
