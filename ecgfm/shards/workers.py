"""Work in several processes that end together: with the last task, with a fault, with Ctrl-C, and with their parent."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from ecgfm.errors import ShardError

Task = TypeVar("Task")
PROGRESS_S = 0.2
END_S = 10.0
"""Longest wait for the pool's own thread, once its processes have ended."""


def run_all(
    work: Callable[[Task], Iterator[None]], tasks: Sequence[Task], workers: int, progress: Callable[[int], None]
) -> None:
    """Do every task, in this process or in several.

    Args:
        work: Does one task and yields once for each record; a function at the top of a module.
        tasks: What is to be done; each must be picklable.
        workers: Most processes.
        progress: Called now and then with the records done.

    Raises:
        ShardError: Also when a process was killed.
    """
    if workers <= 1 or len(tasks) <= 1:
        done = 0
        for task in tasks:
            for _ in work(task):
                done += 1
                progress(done)
        return
    with _one_thread_each():
        _run_in_processes(work, tasks, min(workers, len(tasks)), progress)


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes that are started now compute on one thread: a thread a core for each of them is in the way."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run_in_processes(
    work: Callable[[Task], Iterator[None]], tasks: Sequence[Task], workers: int, progress: Callable[[int], None]
) -> None:
    context = multiprocessing.get_context("spawn")  # fork would copy the progress bar's thread in a bad moment
    counter = context.Value("q", 0)
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_worker, initargs=(counter,)
    )
    ahead = iter(tasks)
    waiting: set[concurrent.futures.Future[None]] = set()
    try:
        while True:
            # A few tasks ahead of the workers: each carries the references of its records.
            for task in islice(ahead, 2 * workers - len(waiting)):
                waiting.add(pool.submit(_do, work, task))
            if not waiting:
                break
            done_now, waiting = concurrent.futures.wait(
                waiting, timeout=PROGRESS_S, return_when=concurrent.futures.FIRST_COMPLETED
            )
            progress(counter.get_obj().value)  # without its lock, which a process that was killed may hold for ever
            for future in done_now:
                future.result()
    except BaseException as error:
        processes = list((pool._processes or {}).values())
        manager: threading.Thread | None = pool._executor_manager_thread  # type: ignore[assignment]
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        if manager is not None:
            manager.join(
                END_S
            )  # it waits for the same processes: where it is told of an end, join() here is told of none
        if isinstance(error, BrokenProcessPool):
            raise ShardError(
                "a worker process was killed, as the system does when memory runs out; finished shards are kept, "
                "repeat with fewer --workers"
            ) from error
        raise
    pool.shutdown()


_COUNTER: Any = None


def _start_worker(counter: Any) -> None:
    """Share the count of records, leave Ctrl-C to the parent, and end with it."""
    global _COUNTER
    _COUNTER = counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent was killed: nothing else tells it, and it would write beside the next call."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _do(work: Callable[[Task], Iterator[None]], task: Task) -> None:
    for _ in work(task):
        with _COUNTER.get_lock():
            _COUNTER.value += 1
