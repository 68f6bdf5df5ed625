"""Errors say what they are, and keep it across processes."""

from __future__ import annotations

import inspect
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from ecgfm import errors
from ecgfm.errors import EcgfmError, RecordError
from ecgfm.signal.canonical import quantise

HIGH = np.full((12, 5000), 1e6)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_record_error_keeps_reason_and_message_when_pickled(protocol: int) -> None:
    error = RecordError("lead-flat", "lead V1 is flat")
    back = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - our own bytes
    assert type(back) is RecordError
    assert (back.reason, back.message, str(back)) == ("lead-flat", "lead V1 is flat", "lead V1 is flat")


def test_a_record_error_comes_back_whole_from_a_worker_process() -> None:
    # A process that is started anew has nothing but what is pickled.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool, pytest.raises(RecordError) as caught:
        pool.submit(quantise, HIGH).result()
    with pytest.raises(RecordError) as here:
        quantise(HIGH)
    assert (caught.value.reason, str(caught.value)) == (here.value.reason, str(here.value))


def test_one_class_catches_every_error_of_the_user() -> None:
    classes = [value for _, value in inspect.getmembers(errors, inspect.isclass)]
    assert len(classes) > 5
    assert all(issubclass(value, EcgfmError) for value in classes)


def test_wrong_arguments_are_value_errors_too() -> None:
    for name in ("ConfigError", "LeadError", "SignalError", "ContractError", "RecordError"):
        assert issubclass(getattr(errors, name), ValueError), name
