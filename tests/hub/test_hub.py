"""To the Hub and back, with the unmodified client against a server on this machine.

About 30 s on two free cores: five processes that import torch. What the client tries again it tries after a second.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from safetensors.torch import load_file, save_file

from ecgfm import ECGEncoder, config
from ecgfm.encoders import vit
from ecgfm.signal.contract import SignalContract
from tests.hub.hub_server import Blob, Fault, HubServer
from tests.hub.test_export import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]
ALICE, BOB = "hf_alice_may_write", "hf_bob_is_another"
OLD_CLIENT = pytest.mark.skipif(
    huggingface_hub.__version__.startswith("0."), reason="huggingface_hub before 1.0 tries neither again"
)
Answer = dict[str, Any]
Ask = Callable[..., Answer]


class Client:
    """A process with the unmodified client, which is asked a line at a time."""

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self.errors = (folder / "stderr").open("w+", encoding="utf-8")
        environment = clean() | hub.environment(folder / "home")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.hub.hub_client"],
            cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip
        self.said: list[str] = []

    def ask(self, do: str, *, token: str | None = None, **options: Any) -> Answer:
        """Return the answer to one request."""
        assert self.process.stdin and self.process.stdout
        request = {"do": do, "token": token} | {key: str(v) if isinstance(v, Path) else v for key, v in options.items()}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        self.said.append(line)
        assert line, self.read_errors()
        answer: Answer = json.loads(line)
        return answer

    def read_errors(self) -> str:
        """Return what it wrote to stderr."""
        self.errors.seek(0)
        return self.errors.read()

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.errors.close()


def clean() -> dict[str, str]:
    """Return this process's environment without what a user's Hub would be."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    # Another version of the client may lie on the path.
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return kept | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def client(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    process = Client(hub, tmp_path_factory.mktemp("client"))
    yield process
    process.close()


@pytest.fixture
def ask(client: Client, hub: HubServer, tmp_path: Path) -> Iterator[Ask]:
    """Return a function that asks the client, with a cache of this test's own; no fault is left to the next test."""

    def ask(do: str, **options: Any) -> Answer:
        return client.ask(do, **({"cache_dir": tmp_path / "cache"} if do == "load" else {}) | options)

    yield ask
    left = [fault for fault in hub.faults if fault.times]
    hub.faults.clear()
    assert not [fault for fault in left if fault.times < 50], "a fault that was set never came"


@pytest.fixture
def folder(encoder: ECGEncoder, tmp_path: Path) -> Path:
    """Return an encoder's folder as it is published."""
    encoder.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def features(ask: Ask, folder: Path) -> str:
    """Return what the encoder of a folder gives, in the client's process."""
    return str(ask("load", where=folder)["features"])


def publish(words: list[str | Path], hub: HubServer, home: Path, token: str | None) -> subprocess.CompletedProcess[str]:
    """Run tools/publish.py as a user does."""
    command = [sys.executable, "tools/publish.py", *map(str, words)]
    environment = clean() | hub.environment(home, token)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def write_run(encoder: ECGEncoder, folder: Path) -> Path:
    write_checkpoint(folder, encoder, 40)
    settings = {
        "encoder": config.to_dict(encoder.encoder.config),
        "objective": {"kind": "jepa"},
        "data": {"shards": ["/home/somebody/shards"], "batch_size": 64},
        "optim": {},
        "engine": {},
        "out": "/home/somebody/run",
    }
    (folder / "run.json").write_text(json.dumps(settings))
    return folder


def test_a_run_is_published_read_back_in_a_fresh_process_and_loaded_by_name(
    encoder: ECGEncoder, hub: HubServer, ask: Ask, tmp_path: Path
) -> None:
    run = write_run(encoder, tmp_path / "run")
    done = publish([run, "alice/ecg-jepa", "--private", "--out", tmp_path / "kept"], hub, tmp_path / "home", ALICE)
    assert done.returncode == 0, done.stderr
    assert ALICE not in done.stdout + done.stderr
    files = ["README.md", "config.json", "model.safetensors", "reference.safetensors"]
    for name in [*files, "features"]:
        assert f"the same there and here: {name}" in done.stdout
    stored = hub.repositories["alice/ecg-jepa"]
    there = stored.commits[stored.refs["main"]]
    assert sorted(there) == [".gitattributes", *files] and stored.private
    assert there["model.safetensors"].large and not there["config.json"].large
    assert there["model.safetensors"].content == (tmp_path / "kept" / "model.safetensors").read_bytes()
    card = there["README.md"].content.decode()
    assert "# alice/ecg-jepa\n" in card and 'from_pretrained("alice/ecg-jepa")' in card and "somebody" not in card
    # Nowhere on the disk of who publishes: the token came by the environment, and the log-in is not ours to keep.
    written = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert not [path for path in written if ALICE.encode() in path.read_bytes()]
    loaded = ask("load", where="alice/ecg-jepa", token=ALICE)
    assert loaded == {"features": features(ask, tmp_path / "kept"), "revision": stored.refs["main"]}


def test_what_the_hub_gives_back_otherwise_is_not_said_to_be_published(
    hub: HubServer, folder: Path, tmp_path: Path
) -> None:
    # A whole and loadable file with one other weight, of the digest that was asked for: features are what tell.
    weights = load_file(folder / "model.safetensors")
    weights["norm.weight"] = weights["norm.weight"] * 1.001
    save_file(weights, tmp_path / "other.safetensors", metadata={"format": "pt"})
    other = (tmp_path / "other.safetensors").read_bytes()
    hub.fault(Fault(method="GET", path="model.safetensors", change=lambda body: other))
    done = publish([folder, "alice/otherwise"], hub, tmp_path / "home", ALICE)
    hub.faults.clear()
    assert done.returncode == 1 and "published as" not in done.stdout
    assert "is on the Hub but did not stand the test" in done.stderr
    assert "its digest is" in done.stderr and "Traceback" not in done.stderr


def test_branches_tags_and_commits_are_each_their_own(
    hub: HubServer, ask: Ask, folder: Path, encoder: ECGEncoder
) -> None:
    first = ask("push", folder=folder, repo_id="alice/versions", token=ALICE)["revision"]
    hub.repositories["alice/versions"].refs["v1"] = first
    wanted = features(ask, folder)
    for weight in encoder.parameters():
        weight.data.mul_(1.5)
    encoder.save_pretrained(folder)
    second = ask("push", folder=folder, repo_id="alice/versions", token=ALICE)["revision"]
    third = ask("push", folder=folder, repo_id="alice/versions", branch="trial", token=ALICE)["revision"]
    assert first != second
    for revision, commit, value in (
        (None, second, features(ask, folder)),
        ("main", second, features(ask, folder)),
        ("v1", first, wanted),
        (first, first, wanted),
        ("trial", third, features(ask, folder)),
    ):
        assert ask("load", where="alice/versions", revision=revision) == {"features": value, "revision": commit}
    answer = ask("load", where="alice/versions", revision="v9")
    assert answer["error"] == "ContractError" and "has no revision 'v9'" in answer["message"]


def test_a_private_encoder_is_its_owners(ask: Ask, folder: Path) -> None:
    assert "revision" in ask("push", folder=folder, repo_id="alice/hidden", private=True, token=ALICE)
    for token in (None, BOB):
        answer = ask("load", where="alice/hidden", token=token)
        assert answer["error"] == "ContractError" and "log in when it is private" in answer["message"]
    answer = ask("load", where="alice/hidden", token="hf_wrong_and_secret")
    assert answer["error"] == "ContractError" and "hf_wrong" not in answer["message"]
    assert ask("load", where="alice/hidden", token=ALICE)["features"] == features(ask, folder)


def test_private_is_refused_where_it_would_not_hold(hub: HubServer, ask: Ask, folder: Path) -> None:
    ask("push", folder=folder, repo_id="alice/open", token=ALICE)
    before = hub.repositories["alice/open"].refs["main"]
    answer = ask("push", folder=folder, repo_id="alice/open", private=True, token=ALICE)
    assert answer["error"] == "ContractError" and "is public" in answer["message"]
    assert hub.repositories["alice/open"].refs["main"] == before


@pytest.mark.parametrize(
    ("token", "repo_id", "words"),
    [
        (None, "alice/x", "cannot be written"),
        ("hf_wrong_and_secret", "alice/x", "Invalid credentials"),
        (BOB, "alice/x", "don't have the rights"),
        (ALICE, "nobody", "give owner/name"),
        (ALICE, "alice/a b", "give owner/name"),
    ],
)
def test_who_may_not_write_is_told(
    ask: Ask, hub: HubServer, folder: Path, token: str, repo_id: str, words: str
) -> None:
    answer = ask("push", folder=folder, repo_id=repo_id, token=token)
    assert answer["error"] == "ContractError" and words in answer["message"], answer
    assert "hf_" not in answer["message"] and repo_id not in hub.repositories


def test_what_is_not_there_is_told_apart(hub: HubServer, ask: Ask, folder: Path) -> None:
    answer = ask("load", where="alice/nothing")
    assert answer["error"] == "ContractError" and "neither a folder nor a repository" in answer["message"]
    ask("push", folder=folder, repo_id="alice/halved", token=ALICE)
    stored = hub.repositories["alice/halved"]
    files = dict(stored.commits[stored.refs["main"]])
    del files["model.safetensors"]
    # An old pickle beside the settings is nothing to fall back to.
    stored.commit("main", files | {"pytorch_model.bin": Blob(b"x", large=True)})
    answer = ask("load", where="alice/halved")
    assert answer["error"] == "ContractError" and "has no model.safetensors" in answer["message"]
    assert not [path for _, path, _ in hub.requests if "pytorch_model" in path]


@OLD_CLIENT
def test_a_busy_hub_is_asked_again(hub: HubServer, ask: Ask, folder: Path) -> None:
    hub.fault(Fault(method="POST", path="/preupload/", status=503))
    hub.fault(Fault(method="PUT", path="/lfs/", status=500))
    # Weights of their own, so that they are sent.
    weights = load_file(folder / "model.safetensors")
    weights["norm.bias" if "norm.bias" in weights else "norm.weight"] += 0.25
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "reference.safetensors").unlink()
    assert "revision" in ask("push", folder=folder, repo_id="alice/busy", token=ALICE)
    asked = [(path, status) for _, path, status in hub.requests]
    assert ("/api/models/alice/busy/preupload/main", 503) in asked
    assert [status for path, status in asked if path.startswith("/lfs/")].count(500) == 1


@pytest.mark.parametrize("status", [403, 500])
def test_a_hub_that_refuses_or_fails_is_said(hub: HubServer, ask: Ask, folder: Path, status: int) -> None:
    ask("push", folder=folder, repo_id="alice/failing", token=ALICE)
    hub.fault(Fault(method="GET", path="alice/failing/resolve/.*model.safetensors", status=status, times=99))
    answer = ask("load", where="alice/failing")
    assert answer["error"] == "ContractError" and "model.safetensors of alice/failing" in answer["message"], answer
    assert str(status) in answer["message"]


@OLD_CLIENT
def test_a_connection_that_breaks_goes_on_where_it_was(
    hub: HubServer, ask: Ask, contract: SignalContract, tmp_path: Path
) -> None:
    # The client keeps what it has in pieces of 10 MiB, so that the weights must be more: 14 MB, ViT-XS.
    piece = 10 << 20
    large = ECGEncoder(encoder=config.to_dict(vit.XS), signal=config.to_dict(contract)).eval()
    large.save_pretrained(tmp_path / "large")
    ask("push", folder=tmp_path / "large", repo_id="alice/broken", token=ALICE)
    hub.ranges.clear()
    hub.fault(Fault(method="GET", path="alice/broken/resolve/.*model.safetensors", cut_after=piece + 1000))
    assert ask("load", where="alice/broken")["features"] == features(ask, tmp_path / "large")
    assert hub.ranges == [f"bytes={piece}-"]


def test_offline_the_cache_is_enough(hub: HubServer, ask: Ask, folder: Path, tmp_path: Path) -> None:
    ask("push", folder=folder, repo_id="alice/cached", token=ALICE)
    answer = ask("load", where="alice/cached", local_files_only=True)
    assert answer["error"] == "ContractError" and "not in the cache" in answer["message"]
    online = ask("load", where="alice/cached")
    asked = len(hub.requests)
    assert ask("load", where="alice/cached", local_files_only=True) == online
    assert len(hub.requests) == asked
    # Not asked to stay offline, but the Hub is out of reach: what is in the cache is taken.
    hub.fault(Fault(method="HEAD", path="alice/cached", status=503, times=99))
    assert ask("load", where="alice/cached") == online


def test_weights_with_another_digest_are_refused_and_can_be_loaded_again(
    hub: HubServer, ask: Ask, folder: Path
) -> None:
    ask("push", folder=folder, repo_id="alice/changed", token=ALICE)
    flip = lambda body: body[:-1] + bytes([body[-1] ^ 1])  # noqa: E731  # a weight's last bit: it loads
    hub.fault(Fault(method="GET", path="alice/changed/resolve/.*model.safetensors", change=flip))
    for _ in range(2):  # from the network, then from the cache
        answer = ask("load", where="alice/changed")
        assert answer["error"] == "ContractError", answer
        assert "model.safetensors of alice/changed is not what the Hub says it is" in answer["message"]
        assert "force_download=True" in answer["message"]
    assert ask("load", where="alice/changed", force_download=True)["features"] == features(ask, folder)
    hub.fault(Fault(method="GET", path="alice/changed/resolve/.*config.json", change=lambda body: body[:-1] + b" "))
    answer = ask("load", where="alice/changed", force_download=True)
    assert answer["error"] == "ContractError" and "config.json of alice/changed is not what" in answer["message"]


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_in_place_of_safetensors_is_refused(hub: HubServer, ask: Ask, folder: Path, tmp_path: Path) -> None:
    ask("push", folder=folder, repo_id="alice/pickled", token=ALICE)
    stored = hub.repositories["alice/pickled"]
    bomb = Blob(pickle.dumps(Bomb(tmp_path / "exploded")), large=True)
    stored.commit("main", stored.commits[stored.refs["main"]] | {"model.safetensors": bomb})
    answer = ask("load", where="alice/pickled")
    assert answer["error"] == "ContractError" and "is not a safetensors file" in answer["message"]
    (folder / "model.safetensors").write_bytes(bomb.content)
    answer = ask("push", folder=folder, repo_id="alice/pickled", token=ALICE)
    assert answer["error"] == "ContractError" and "is not a safetensors file" in answer["message"]
    assert not (tmp_path / "exploded").exists()


def test_a_card_that_the_hub_does_not_take_is_said_before_anything_is_uploaded(
    hub: HubServer, ask: Ask, folder: Path
) -> None:
    answer = ask("push", folder=folder, repo_id="alice/licence", licence="do-as-you-like", token=ALICE)
    assert (
        answer["error"] == "ContractError" and "do-as-you-like" in answer["message"] and "licence" in answer["message"]
    )
    assert [list(files) for files in hub.repositories["alice/licence"].commits.values()] == [[".gitattributes"]]


def test_no_token_was_ever_printed(client: Client) -> None:
    said = "".join(client.said) + client.read_errors()
    assert client.said and "hf_" not in said
