"""Lets the tests of this folder import what lies beside them, also when pytest is not started as a module."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
