"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ecg_data() -> Path:
    """Return the folder of real recordings, or skip, saying how to get them."""
    folder = Path(os.environ.get("ECGFM_TEST_DATA", Path(__file__).parents[2] / "shared" / "ecg"))
    if not folder.is_dir():
        pytest.skip(f"real recordings are not at {folder}; set ECGFM_TEST_DATA to a folder that holds them")
    return folder
