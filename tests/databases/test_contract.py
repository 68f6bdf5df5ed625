"""What every database must keep, for each file of the folder, found by itself."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from ecgfm import parts
from ecgfm.databases.base import Database, load_database
from ecgfm.errors import ConfigError, DatabaseError
from ecgfm.leads import derivable
from ecgfm.signal.units import millivolt_per

NAMES = parts.names("ecgfm.databases")
READS_FILES = tuple(name for name in NAMES if name != "synthetic")
# Readers of anybody's own archive, which is published nowhere.
OWN = ("numpy_folder", "wfdb_folder")
PUBLISHED = tuple(name for name in READS_FILES if name not in OWN)


@pytest.mark.parametrize("name", NAMES)
def test_facts_are_given(name: str) -> None:
    database = load_database(name)
    for fact in ("title", "licence", "citation", "address", "version"):
        value = getattr(database, fact)
        assert isinstance(value, str) and value.strip() and "\n" not in value, fact
        assert value.isascii(), fact
    assert database.expected_records is None or database.expected_records > 0
    assert importlib.import_module(f"ecgfm.databases.{name}").__doc__


@pytest.mark.parametrize("name", READS_FILES)
def test_address_and_licence_can_be_followed(name: str) -> None:
    database = load_database(name)
    if name in OWN:
        assert database.address == "not published"
    else:
        assert re.match(r"https://(doi\.org/10\.|physionet\.org/content/)\S+$", database.address)
    assert re.fullmatch(r"[A-Za-z0-9.+-]+", database.licence)  # SPDX identifiers hold no space


@pytest.mark.parametrize("name", NAMES)
def test_what_its_signals_are_can_be_meant(name: str) -> None:
    database = load_database(name)
    assert all(10 <= rate_hz <= 10_000 for rate_hz in database.native_rates_hz)
    if database.native_leads:
        assert derivable(database.native_leads) == ()
    if name not in OWN:
        assert millivolt_per(database.native_unit) > 0
    assert database.highpass_hz is None or 0 < database.highpass_hz <= 5
    assert database.typical_s > 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_its_files_have_an_address_or_steps_to_get_them(name: str) -> None:
    download = load_database(name).download
    if download is None:
        return
    assert re.fullmatch(r"https?://[a-z0-9.-]+/(\S*/)?", download.address)
    assert download.address.startswith("https") or download.steps  # nothing is fetched unprotected
    assert all(pattern.strip() and not pattern.startswith("/") for pattern in (*download.files, *download.archives))
    if not download.sums:
        assert download.steps or download.files


@pytest.mark.parametrize("name", NAMES)
def test_name_comes_back_from_either_spelling(name: str) -> None:
    written = load_database(name).name()
    assert "_" not in written and written.replace("-", "_") == name
    assert type(load_database(written)) is type(load_database(name))


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_rule_is_refused_and_the_known_ones_explained(name: str) -> None:
    with pytest.raises(ConfigError, match="no-such-rule"):
        load_database(name, mend=("no-such-rule",))
    for rule, words in type(load_database(name)).mends.items():
        assert words.strip() and load_database(name, mend=(rule,)).mend == (rule,)


@pytest.mark.parametrize("name", READS_FILES)
@pytest.mark.parametrize("fault", ["missing", "empty", "file"])
def test_a_folder_that_cannot_be_the_database_is_refused_with_its_path(name: str, fault: str, tmp_path: Path) -> None:
    root = tmp_path / "given"
    if fault == "empty":
        root.mkdir()
    if fault == "file":
        root.write_text("not a folder")
    with pytest.raises(DatabaseError, match=re.escape(str(root))):
        list(load_database(name).refs(root))


@pytest.mark.parametrize("name", NAMES)
def test_a_file_defines_one_database(name: str) -> None:
    assert issubclass(parts.load("ecgfm.databases", name, Database), Database)  # type: ignore[type-abstract]
