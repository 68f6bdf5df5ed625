"""What every database says of its download, for each file of the folder, found by itself."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest

from ecgfm import parts
from ecgfm.databases._download import facts
from ecgfm.databases._download_list import safe_path
from ecgfm.databases.base import Download, load_database
from ecgfm.errors import ConfigError

FETCHED: dict[str, Download] = {
    name: download
    for name in parts.names("ecgfm.databases")
    if (download := load_database(name).download) is not None and not download.steps
}


def test_the_public_databases_can_be_fetched() -> None:
    assert {"ptb_xl", "georgia", "ludb", "mimic_iv_ecg", "code_15", "ptb_diagnostic"} <= FETCHED.keys()


@pytest.mark.parametrize("name", FETCHED)
def test_the_address_is_a_folder_that_nobody_between_can_change(name: str) -> None:
    for address in [FETCHED[name].address, *([FETCHED[name].sums] if "://" in FETCHED[name].sums else [])]:
        parts = urlsplit(address)
        assert parts.scheme == "https" and parts.hostname and not parts.query and parts.username is None
    assert FETCHED[name].address.endswith("/")


@pytest.mark.parametrize("name", FETCHED)
def test_what_is_needed_is_said_in_paths_of_the_list(name: str) -> None:
    download = FETCHED[name]
    for pattern in (*download.files, *download.archives):
        assert safe_path(pattern, name) == pattern
    assert download.sums or download.files, "without a list, the files are named"
    assert download.sums or not any(mark in path for path in download.files for mark in "*?[")


@pytest.mark.parametrize("name", FETCHED)
def test_what_no_reader_can_open_is_unpacked(name: str) -> None:
    assert all(pattern in FETCHED[name].archives for pattern in FETCHED[name].files if pattern.endswith(".zip"))


@pytest.mark.parametrize("name", sorted(set(parts.names("ecgfm.databases")) - FETCHED.keys()))
def test_what_cannot_be_fetched_says_what_to_do_instead(name: str) -> None:
    database = load_database(name)
    with pytest.raises(ConfigError, match=r"tools/convert\.py") as caught:
        facts(database)
    assert database.licence in str(caught.value)
