"""Shards that are streamed or cached: the same windows whoever reads them, and damage that is said or passed over."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ecgfm.data.loader import Loader, Streaming
from ecgfm.data.mixture import BLOCK
from ecgfm.data.places import Place, fill_cache, settle, shard_source
from ecgfm.data.stream import BlockMixture
from ecgfm.databases._download_http import Patience
from ecgfm.databases.base import load_database
from ecgfm.errors import ConfigError, ShardError
from ecgfm.shards import remote as remote_module
from ecgfm.shards.cache import fetch_manifest, fetch_shards
from ecgfm.shards.reader import Shards
from ecgfm.shards.remote import Remote
from ecgfm.shards.writer import Options, convert

ROOT = Path(__file__).resolve().parents[2]
RECORDS, BATCH, WINDOW = 30, 12, 4000
QUICK = Patience(attempts=3, first_wait_s=0.01, longest_wait_s=0.02, silence_s=5.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for hundredths of a second where users wait for seconds."""
    settle.cache_clear()
    monkeypatch.setattr(remote_module, "PATIENCE", QUICK)


@pytest.fixture
def folder(tmp_path: Path, training_shards: Path) -> Path:
    """Return a copy of the 30 records in four shards, to be damaged."""
    return Path(shutil.copytree(training_shards, tmp_path / "there"))


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, and fails as it is told."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.asked: Counter[str] = Counter()
        self.faults: dict[str, list[int]] = {}
        """By name: what each of the next requests answers; 0 sends half and breaks off."""

    @property
    def url(self) -> str:
        """Return the address of the folder."""
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET, with a range on demand."""

    server: Server

    def do_GET(self) -> None:
        """Answer, or fail as told."""
        name = self.path.partition("?")[0].strip("/")
        self.server.asked[name] += 1
        path = self.server.folder / name
        fault = self.server.faults.get(name, [])
        status = fault.pop(0) if fault else 200
        if status >= 400 or not path.is_file():
            self.send_error(status if status >= 400 else 404)
            return
        content = path.read_bytes()
        wanted = self.headers.get("Range", "").removeprefix("bytes=").rstrip("-")
        start = int(wanted) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        self.wfile.write(rest[: len(rest) // 2] if status == 0 else rest)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with Server(folder) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def loader(
    *places: str,
    rank: int = 0,
    world_size: int = 1,
    position: int = 0,
    block: int = 2,
    skip: bool = False,
    weights: dict[str, float] | None = None,
    batch_size: int = BATCH,
    seed: int = 5,
) -> Loader:
    there = settle(places, None, remote_module.S3_COMMAND)
    shards = Shards([place.folder for place in there], here=False)
    return Loader(
        shards,
        window_samples=WINDOW,
        batch_size=batch_size,
        accumulation=1,
        rank=rank,
        world_size=world_size,
        seed=seed,
        position=position,
        weights=weights,
        streaming=Streaming(read_shard=shard_source(there, shards), block_shards=block, readers=2),
        skip_damaged=skip,
    )


def steps(loader: Loader, number: int) -> torch.Tensor:
    """Return the windows of some steps from the loader's position on, shape (steps, B, 12, T)."""
    return torch.stack([loader.read(loader.position + step * BATCH).signal_BLT for step in range(number)])


def expected(loader: Loader, folders: list[Path], first: int, last: int) -> torch.Tensor:
    """Return the windows at some positions, read from the files of the folders by index."""
    shards = Shards(folders)
    index, starts = loader.windows(first, last)
    rows = [shards.counts(int(record))[:, start : start + WINDOW] for record, start in zip(index, starts)]
    return torch.from_numpy(np.stack(rows))


def flip(path: Path, offset: int) -> None:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def shard_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


@pytest.mark.parametrize("block", [1, 2, 3, 100])
def test_an_epoch_has_each_record_once_and_its_blocks_hold_whole_shards(folder: Path, block: int) -> None:
    mixture = loader(str(folder), block=block).mixture
    assert isinstance(mixture, BlockMixture)
    shards = Shards([folder])
    orders = [mixture.records(epoch * RECORDS, (epoch + 1) * RECORDS) for epoch in range(3)]
    assert all(sorted(order) == list(range(RECORDS)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    (part,) = mixture.parts
    for number in range(2 * mixture.num_blocks(part)):
        first, records = mixture.block(part, number)
        assert np.array_equal(records, mixture.records(first, first + len(records)))
        inside = set(shards.shard_of[records].tolist())
        assert len(inside) <= block and len(records) == np.isin(shards.shard_of, list(inside)).sum()
        assert all(mixture.block_of(part, place) == number for place in (first, first + len(records) - 1))


@pytest.mark.parametrize("way", ["folder", "pipe:cat {}/", "pipe:cat '{}'/{{name}}", "http"])
def test_streamed_windows_are_those_of_the_order_over_epochs(folder: Path, server: Server, way: str) -> None:
    place = {"folder": str(folder), "http": server.url}.get(way) or way.format(folder)
    here = loader(place)
    assert torch.equal(steps(here, 6).flatten(0, 1), expected(here, [folder], 0, 6 * BATCH))


@pytest.mark.parametrize("world_size", [2, 4, 12])
def test_ranks_together_stream_what_one_rank_streams(folder: Path, world_size: int) -> None:
    one = steps(loader(str(folder)), 4)
    ranks = [steps(loader(str(folder), rank=rank, world_size=world_size), 4) for rank in range(world_size)]
    assert torch.equal(torch.cat(ranks, dim=1), one)


@pytest.mark.parametrize("done", [1, 2, 3])
def test_going_on_in_the_middle_of_a_block_reads_that_block_and_none_before(
    folder: Path, server: Server, done: int
) -> None:
    whole = steps(loader(str(folder), block=1), 5)
    later = loader(server.url, position=done * BATCH, block=1)
    assert torch.equal(steps(later, 1)[0], whole[done])
    mixture = later.mixture
    assert isinstance(mixture, BlockMixture)
    (part,) = mixture.parts
    blocks = {mixture.block_of(part, place) for place in range(done * BATCH, (done + 1) * BATCH)}
    # and the one that is read ahead
    assert sum(count for name, count in server.asked.items() if name.endswith(".tar")) <= len(blocks) + 1
    assert torch.equal(steps(later, 5 - done), whole[done:])


def test_databases_are_streamed_by_weight_each_in_epochs_of_its_own(folder: Path, tmp_path: Path) -> None:
    database = json.loads((folder / "manifest.json").read_text())
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    database["database"] = "our-ward"
    (other / "manifest.json").write_text(json.dumps(database))
    settings: dict[str, Any] = {"weights": {"georgia": 0.9, "our-ward": 0.1}, "block": 1}
    whole = loader(str(folder), str(other), **settings)
    assert torch.equal(steps(whole, 30).flatten(0, 1), expected(whole, [folder, other], 0, 30 * BATCH))
    drawn = whole.mixture.records(0, BLOCK)
    assert np.bincount(drawn // RECORDS).tolist() == [9000, 1000]
    for number in range(2):
        which, place = whole.mixture.draw(0, 2 * BLOCK + 77)
        at = np.flatnonzero(which == number)
        for first, last in ((0, 5), (990, 1010), (1500, len(at))):
            assert np.array_equal(whole.mixture.positions(number, first, last), at[first:last])
        assert np.array_equal(place[at], np.arange(len(at)))
    later = loader(str(folder), str(other), position=17 * BATCH, **settings)
    assert torch.equal(steps(later, 3), steps(loader(str(folder), str(other), **settings), 20)[17:])


def test_shards_of_one_record_and_more_ranks_than_shards(tmp_path: Path, training_shards: Path) -> None:
    (tmp_path / "georgia").mkdir()
    for source in (training_shards.parent / "georgia").glob("E0000[123].*"):
        shutil.copy(source, tmp_path / "georgia")
    convert(load_database("georgia"), tmp_path / "georgia", tmp_path / "few", Options(records_per_shard=1))
    assert len(shard_paths(tmp_path / "few")) == 3
    ranks = [steps(loader(str(tmp_path / "few"), rank=rank, world_size=12, block=8), 2) for rank in range(12)]
    whole = loader(str(tmp_path / "few"), block=8)
    assert torch.equal(torch.cat(ranks, dim=1).flatten(0, 1), expected(whole, [tmp_path / "few"], 0, 2 * BATCH))


def test_a_server_that_fails_for_a_while_changes_nothing(folder: Path, server: Server) -> None:
    names = [path.name for path in shard_paths(folder)]
    server.faults = {names[0]: [500, 503], names[1]: [0, 0], "manifest.json": [500]}
    here = loader(server.url)
    assert torch.equal(steps(here, 3).flatten(0, 1), expected(here, [folder], 0, 3 * BATCH))
    assert server.asked[names[0]] >= 3 and server.asked[names[1]] >= 3


def damage(kind: str, folder: Path) -> tuple[str, set[int]]:
    """Damage the second shard; return what is said of it, and the records that cannot be read."""
    shards = Shards([folder])
    path, (first, *_, last) = shards.path(1), np.flatnonzero(shards.shard_of == 1).tolist()
    members = shards.manifests[0].shards[1].members
    if kind == "a changed sample":
        flip(path, members.offset[2] + 4000)
        return "do not have their SHA-256", {first + 2}
    if kind == "a changed JSON":
        flip(path, members.json_offset[2])
        return "JSON cannot be read", {first + 2}
    if kind == "half a tar":
        path.write_bytes(path.read_bytes()[: members.offset[4] + 10])
        return "came with .* bytes, its manifest says", set(range(first + 4, last + 1))
    path.unlink()
    return "cannot be", set(range(first, last + 1))


@pytest.mark.parametrize("kind", ["a changed sample", "a changed JSON", "half a tar", "no shard"])
@pytest.mark.parametrize("way", ["folder", "pipe", "http"])
def test_streamed_damage_stops_the_run_or_is_passed_over_the_same_way_on_all_ranks_and_on_going_on(
    folder: Path, server: Server, way: str, kind: str
) -> None:
    place = {"folder": str(folder), "http": server.url, "pipe": f"pipe:cat {folder}/"}[way]
    good = loader(place)
    shutil.copytree(folder, folder.parent / "whole")
    said, lost = damage(kind, folder)
    with pytest.raises(ShardError, match=said) as caught:
        steps(loader(place), 4)
    assert "-000001.tar" in str(caught.value)
    skipping = loader(place, skip=True)
    windows = steps(skipping, 4)
    assert skipping.replacements
    replaced = skipping.replacements.take(4 * BATCH)
    index, _ = good.windows(0, 4 * BATCH)
    assert [one.position for one in replaced] == [at for at in range(4 * BATCH) if index[at] in lost]
    assert all("-000001.tar" in one.shard for one in replaced)
    there = Shards([folder.parent / "whole"])
    _, starts = good.windows(0, 4 * BATCH)
    for at, window in enumerate(windows.flatten(0, 1).numpy()):
        same = np.array_equal(window, there.counts(int(index[at]))[:, starts[at] : starts[at] + WINDOW])
        assert same == (index[at] not in lost)
    ranks = [steps(loader(place, rank=rank, world_size=2, skip=True), 4) for rank in range(2)]
    assert torch.equal(torch.cat(ranks, dim=1), windows)
    assert torch.equal(steps(loader(place, position=BATCH, skip=True), 3), windows[1:])


def by_index(folder: Path, *, skip: bool, position: int = 0, check: bool = False) -> Loader:
    return Loader(
        Shards([folder]),
        window_samples=WINDOW,
        batch_size=BATCH,
        accumulation=1,
        rank=0,
        world_size=1,
        seed=5,
        position=position,
        skip_damaged=skip,
        check_records=check,
    )


@pytest.mark.parametrize("kind", ["a changed sample", "a changed header", "cut while mapped", "cut before", "gone"])
def test_damage_to_mapped_shards_in_mid_run_is_an_error_or_passed_over(folder: Path, kind: str) -> None:
    loaders = [by_index(folder, skip=skip, check=kind == "a changed sample") for skip in (False, True, True)]
    shards = loaders[0].shards
    path, lost = shards.path(1), set(np.flatnonzero(shards.shard_of == 1).tolist())
    members = shards.manifests[0].shards[1].members
    if kind == "cut while mapped":
        for each in loaders:
            each.shards.counts(min(lost))
        with path.open("r+b") as file:
            file.truncate(4096)
    elif kind == "cut before":
        with path.open("r+b") as file:
            file.truncate(4096)
    elif kind == "gone":
        path.unlink()
    else:
        flip(path, members.offset[2] + (4000 if kind == "a changed sample" else -70))
        lost = {min(lost) + 2}
    failing, skipping, resumed = loaders
    with pytest.raises(ShardError, match=r"-000001\.tar"):
        steps(failing, 4)
    windows = steps(skipping, 4)
    assert skipping.replacements
    replaced = skipping.replacements.take(4 * BATCH)
    index, _ = failing.windows(0, 4 * BATCH)
    assert [one.position for one in replaced] == [at for at in range(4 * BATCH) if index[at] in lost]
    resumed.position = 2 * BATCH
    assert torch.equal(steps(resumed, 2), windows[2:])


def test_without_the_check_a_changed_sample_is_not_seen_and_costs_nothing_to_say(folder: Path) -> None:
    here = by_index(folder, skip=False)
    flip(here.shards.path(1), here.shards.manifests[0].shards[1].members.offset[2] + 4000)
    assert torch.equal(steps(here, 3).flatten(0, 1), expected(here, [folder], 0, 3 * BATCH))


def test_nothing_but_damage_stops_the_run_also_when_it_skips(folder: Path) -> None:
    here = loader(str(folder), skip=True)
    for path in shard_paths(folder):
        path.unlink()
    with pytest.raises(ShardError, match="64 records in its place are damaged too"):
        steps(here, 1)


def cached(url: str, cache: Path) -> Place:
    settle.cache_clear()
    (place,) = settle((url,), cache, remote_module.S3_COMMAND)
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
    fill_cache([cached(server.url, tmp_path / "cache")])
    Shards([place.folder]).check_sizes()


def test_a_fetch_goes_on_where_it_was_cut(tmp_path: Path, folder: Path) -> None:
    with Server(folder) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        name = shard_paths(folder)[0].name
        server.faults = {name: [0, 404]}
        place = cached(server.url, tmp_path / "cache")
        with pytest.raises(ShardError, match=f"{name} cannot be fetched: HTTP 404"):
            fill_cache([place])
        half = (place.folder / f"{name}.part").stat().st_size
        assert 0 < half < (folder / name).stat().st_size
        fill_cache([cached(server.url, tmp_path / "cache")])
        server.shutdown()
    assert (place.folder / name).read_bytes() == (folder / name).read_bytes()


def test_secrets_stay_out_of_settings_and_messages(
    folder: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (f"{server.url}?token=hush", server.url.replace("//", "//me:hush@")):
        with pytest.raises(ConfigError, match="environment variable") as caught:
            Remote(place)
        assert "hush" not in str(caught.value)
    with pytest.raises(ShardError, match="the environment variable ECGFM_TEST_TOKEN is not set"):
        loader(f"{server.url}?$ECGFM_TEST_TOKEN")
    monkeypatch.setenv("ECGFM_TEST_TOKEN", "token=hush")
    here = loader(f"{server.url}?$ECGFM_TEST_TOKEN")
    assert torch.equal(steps(here, 1)[0], expected(here, [folder], 0, BATCH))
    server.shutdown()
    server.server_close()
    settle.cache_clear()
    for place in (f"{server.url}?$ECGFM_TEST_TOKEN", "pipe:false hush/"):
        with pytest.raises(ShardError, match=r"manifest\.json cannot be fetched") as failed:
            loader(place)
        assert "hush" not in str(failed.value)


@pytest.mark.parametrize("name", ["x; touch gone", "../x.tar", "$(true)", "-rf", ""])
def test_a_manifest_cannot_name_what_a_shell_or_a_path_would_obey(name: str, folder: Path) -> None:
    with pytest.raises(ShardError, match="letters, digits"):
        Remote(f"pipe:cat {folder}/").fetch(name, remote_module.Buffer())


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


def run(tiny: list[str], *words: str | Path, fails: bool = False) -> str:
    done = subprocess.run(
        [sys.executable, "recipes/jepa_vit.py", *tiny[2:], *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_recipe_streams_from_a_server_goes_on_exactly_and_passes_over_damage(
    tmp_path: Path, folder: Path, server: Server, tiny: list[str], losses: Callable[[Path], list[float]]
) -> None:
    words = ["--data.shards", server.url, "--data.stream-block", "2", "--data.on-corrupt", "skip"]
    damage("a changed sample", folder)
    said = run(tiny, *words, "--steps", "8", "--out", tmp_path / "whole")
    assert f"streamed: 4 shards (0.00 GB) of {server.url}" in said
    assert "warning:" in said and "SHA-256" in said
    run(tiny, *words, "--steps", "3", "--out", tmp_path / "run")
    # The folder itself, in the order of streams: the place is free to change.
    words[1:2] = [str(folder), "--data.stream"]
    run(tiny, *words, "--steps", "8", "--out", tmp_path / "run")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    lines = [(tmp_path / name / "skipped_records.jsonl").read_text() for name in ("run", "whole")]
    assert lines[0] == lines[1]
    found = [json.loads(line) for line in lines[0].splitlines()]
    assert [(line["step"], line["position"]) for line in found] == [(2, 11), (6, 46)]
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["skipped_records"] == 2


def test_every_rank_hears_of_damage_that_one_has_met(
    tmp_path: Path, folder: Path, server: Server, tiny: list[str], start_recipe: Callable[..., subprocess.Popen[str]]
) -> None:
    damage("a changed sample", folder)
    words = ["--data.shards", server.url, "--data.stream-block", "2", "--out", tmp_path / "run"]
    log = tmp_path / "log"
    assert start_recipe(2, *tiny[2:], *words, log=log).wait(timeout=240) != 0
    said = log.read_text()
    # Position 11 is in the second step, and a row of rank 0; the other rank has it told.
    assert said.count("georgia-all-000001.tar: record E00011 is damaged") >= 2 and "rank 0: georgia" in said
    assert "hangs" not in said and not list((tmp_path / "run").glob("checkpoints/step-*"))
