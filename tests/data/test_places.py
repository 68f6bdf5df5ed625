"""Shards of elsewhere: fetched by a server or a command, kept in a cache, and nothing secret said of them."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ecgfm.data.places import Place, fill_cache, settle
from ecgfm.errors import ConfigError, ShardError
from ecgfm.shards.cache import fetch_manifest, fetch_shards
from ecgfm.shards.reader import Shards
from ecgfm.shards.remote import S3_COMMAND, Buffer, Remote
from tests.data.elsewhere import (
    BATCH,
    QUICK,
    Server,
    by_index,
    expected,
    flip,
    serving,
    shard_paths,
    steps,
    streamed,
)

pytestmark = pytest.mark.usefixtures("quick")


def cached(url: str, cache: Path) -> Place:
    settle.cache_clear()
    (place,) = settle((url,), cache, S3_COMMAND)
    return place


def test_a_cache_holds_the_same_bytes_and_asks_for_each_shard_once(
    tmp_path: Path, folder: Path, server: Server
) -> None:
    names = [path.name for path in shard_paths(folder)]
    server.faults = {names[0]: [500], names[1]: [0]}
    place = cached(server.url, tmp_path / "cache")
    said: list[str] = []
    threads = [threading.Thread(target=fill_cache, args=([place], said.append)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path.name: path.read_bytes() for path in shard_paths(place.folder)} == {
        path.name: path.read_bytes() for path in shard_paths(folder)
    }
    assert [server.asked[name] for name in names] == [2, 2, 1, 1]
    assert len(said) == 1 and f"fetched {len(names)} of {len(names)} shards of {server.url}" in said[0]
    again = cached(f"pipe:cat {folder}/", tmp_path / "cache")  # the same data from elsewhere
    fill_cache([again])
    assert again.folder == place.folder and server.asked[names[2]] == 1
    assert torch.equal(steps(by_index(place.folder, skip=False), 2), steps(by_index(folder, skip=False), 2))


def test_a_cache_never_holds_a_shard_that_is_not_the_manifests(tmp_path: Path, folder: Path, server: Server) -> None:
    flip(shard_paths(folder)[1], 3000)
    place = cached(server.url, tmp_path / "cache")
    with pytest.raises(ShardError, match=r"-000001\.tar came with .* another SHA-256"):
        fill_cache([place])
    assert not (place.folder / shard_paths(folder)[1].name).exists()
    flip(shard_paths(folder)[1], 3000)
    fill_cache([place])  # in the same process, as a notebook does
    Shards([place.folder]).check_sizes()


def test_a_filled_cache_can_be_read_only_and_one_that_lacks_a_shard_says_so(tmp_path: Path, folder: Path) -> None:
    cache = tmp_path / "cache"
    place = f"pipe:cat {folder}/"
    there = cached(place, cache)
    fill_cache([there])
    (there.folder / "manifest.json").write_bytes(b"{}")  # a damaged one is fetched again
    cached(place, cache)
    (there.folder / "lock").unlink()
    (there.folder / "lock").mkdir()  # stands for what cannot be written, for root too
    fill_cache([cached(place, cache)])
    shard_paths(there.folder)[0].unlink()
    with pytest.raises(ShardError, match=r"cannot be written: Is a directory; give another --data\.cache"):
        fill_cache([cached(place, cache)])


def test_a_fetch_goes_on_where_it_was_cut(tmp_path: Path, folder: Path) -> None:
    with serving(folder) as server:
        name = shard_paths(folder)[0].name
        server.faults = {name: [0, 404]}
        place = cached(server.url, tmp_path / "cache")
        with pytest.raises(ShardError, match=f"{name} cannot be fetched: HTTP 404"):
            fill_cache([place])
        half = (place.folder / f"{name}.part").stat().st_size
        assert 0 < half < (folder / name).stat().st_size
        fill_cache([place])
    assert (place.folder / name).read_bytes() == (folder / name).read_bytes()


def test_secrets_stay_out_of_settings_and_messages(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (f"{server.url}?token=hush", server.url.replace("//", "//me:hush@")):
        with pytest.raises(ConfigError, match="environment variable") as caught:
            Remote(place)
        assert "hush" not in str(caught.value)
    with pytest.raises(ShardError, match="the environment variable ECGFM_TEST_TOKEN is not set"):
        streamed(f"{server.url}?$ECGFM_TEST_TOKEN")
    monkeypatch.setenv("ECGFM_TEST_TOKEN", "token=hush")
    here = streamed(f"{server.url}?$ECGFM_TEST_TOKEN")
    assert torch.equal(steps(here, 1)[0], expected(here, [folder], 0, BATCH))
    server.shutdown()
    server.server_close()
    settle.cache_clear()
    for place in (f"{server.url}?$ECGFM_TEST_TOKEN", "pipe:false hush/"):
        with pytest.raises(ShardError, match=r"manifest\.json cannot be fetched") as failed:
            streamed(place)
        assert "hush" not in str(failed.value)


@pytest.mark.parametrize("name", ["x; touch gone", "../x.tar", "$(true)", "-rf", ""])
def test_a_manifest_cannot_name_what_a_shell_or_a_path_would_obey(name: str, folder: Path) -> None:
    with pytest.raises(ShardError, match="letters, digits"):
        Remote(f"pipe:cat {folder}/").fetch(name, Buffer())


@pytest.mark.parametrize(
    ("place", "said"),
    [("ftp://host/x", "nothing is known of ftp"), ("pipe:", "names no command"), ("pipe:  ", "names no command")],
)
def test_a_place_of_an_unknown_kind_is_refused(place: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Remote(place)


def test_s3_goes_through_the_command_that_is_given(tmp_path: Path, folder: Path) -> None:
    words = tmp_path / "words"
    command = f"sh -c 'echo $0 >> {words}; cat {folder}/${{0##*/}}' {{url}}"
    remote = Remote("s3://bucket/some prefix/", command, QUICK)
    place = fetch_manifest(remote, tmp_path / "cache")
    fetch_shards(remote, place, lambda line: None)
    assert words.read_text().splitlines()[0] == "s3://bucket/some prefix/manifest.json"
    assert (
        hashlib.sha256(shard_paths(place)[0].read_bytes()).digest()
        == hashlib.sha256(shard_paths(folder)[0].read_bytes()).digest()
    )


def test_a_command_that_hangs_is_ended_with_all_that_it_started_and_said(tmp_path: Path, folder: Path) -> None:
    alive = tmp_path / "alive"
    command = f"pipe:head -c 1000 {folder}/{{name}}; sh -c 'while :; do date > {alive}; sleep 0.05; done'"
    with pytest.raises(ShardError, match=r"the command failed 3 times: it wrote nothing for 0\.3 s"):
        Remote(command, patience=replace(QUICK, silence_s=0.3)).fetch("manifest.json", Buffer())
    before = alive.stat().st_mtime_ns
    time.sleep(0.3)
    assert alive.stat().st_mtime_ns == before


def test_what_is_fetched_ends_with_the_run_and_the_next_run_fetches_anew(tmp_path: Path, folder: Path) -> None:
    # Each shard comes once, and hangs when it is fetched for the second epoch.
    once, pids = tmp_path / "once", tmp_path / "pids"
    once.mkdir()
    place = f"pipe:mkdir {once}/{{name}} 2>{tmp_path}/told || {{ echo $$ >>{pids}; sleep 600; }}; cat {folder}/{{name}}"
    before = set(threading.enumerate())
    here = streamed(place)
    batches = iter(here)
    assert torch.equal(next(batches).signal_BLT, expected(here, [folder], 0, BATCH))
    until = time.monotonic() + 30
    while not pids.exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    began = time.monotonic()
    batches.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 10
    for pid in map(int, pids.read_text().split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert set(threading.enumerate()) <= before
    shutil.rmtree(once)
    once.mkdir()
    assert torch.equal(steps(streamed(place), 1)[0], expected(here, [folder], 0, BATCH))


def test_a_full_disk_is_not_taken_for_a_command_that_fails(tmp_path: Path, folder: Path) -> None:
    class Full(Buffer):
        tries = 0

        def write(self, chunk: bytes) -> None:
            self.tries += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    full = Full()
    with pytest.raises(OSError, match="No space left"):
        Remote(f"pipe:cat {folder}/").fetch("manifest.json", full)
    assert full.tries == 1
