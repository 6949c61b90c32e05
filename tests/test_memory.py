"""Peak memory of one piece of work in a process that has done others."""

import sys

import pytest
import torch

from autoft.memory import PeakMemory

MB = 10**6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a process's own peak can be reset on Linux only")
def test_the_peak_is_this_works_and_not_an_earlier_ones() -> None:
    base = PeakMemory(torch.device("cpu")).bytes()
    assert base is not None
    first = PeakMemory(torch.device("cpu"))
    torch.ones(100 * MB // 4)
    assert first.kind == "process" and 90 * MB < (first.bytes() or 0) - base < 200 * MB
    second = PeakMemory(torch.device("cpu"))
    torch.ones(20 * MB // 4)
    assert (second.bytes() or 0) - base < 80 * MB
