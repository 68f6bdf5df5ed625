"""The ring that names a lost rank, where its threads meet."""

from __future__ import annotations

import atexit
import threading

import pytest
import torch.distributed as dist
from torch import Tensor

from ecgfm.train.lifeline import How, Lifeline


def test_a_rank_does_not_leave_before_its_news_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its neighbour would take it for the one that died."""
    asked, reached, sent = threading.Event(), threading.Event(), []

    def wait_for_a_death(message: Tensor, **where: object) -> None:
        raise RuntimeError("Connection closed by peer")

    def send_slowly(message: Tensor, **where: object) -> None:
        asked.set()
        assert reached.wait(30)
        sent.append((message.tolist(), where["dst"]))

    monkeypatch.setattr(dist, "new_group", lambda **_: dist.ProcessGroup(0, 3))
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "recv", wait_for_a_death)
    monkeypatch.setattr(dist, "send", send_slowly)
    monkeypatch.setattr(atexit, "register", lambda end: end)
    line = Lifeline(("a", "b", "c"))
    assert asked.wait(30)
    assert line.lost(30) == "rank 1 on b ended without a word: it was killed, ran out of memory or crashed"
    threading.Timer(0.2, reached.set).start()
    line.leave(How.DIED, 1)
    assert sent == [([How.DIED, 1], 2)]
