"""The whole way once: recordings, shards, pretraining, an encoder, a probe, a classifier, a report, the Hub.

    python tools/demo.py                                       (or: make demo)
    python tools/demo.py --database ludb --data FOLDER         (or: make demo DATABASE=ludb DATA=FOLDER)

Runs the same commands that you would type, prints each, and kills the training once to show that it goes
on where it was. What is published goes to a small Hub on this machine. Without --data it makes synthetic recordings.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from ecgfm import config
from ecgfm.errors import ConfigError
from ecgfm.run_folder import checkpoints, read_metrics
from ecgfm.shards.manifest import Manifest, read_manifest

ROOT = Path(__file__).resolve().parents[1]
RANKS = 2


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Convert, check, pretrain, kill and resume, export, load, probe, draw, fine-tune, report, publish, load again."""

    database: str = "synthetic"
    """Which database `data` is; synthetic makes its own."""
    data: Path | None = None
    """Folder of the database, as published."""
    out: Path = Path("demo/synthetic")
    """Folder for everything that is made; what an earlier demo made there is deleted."""
    records: int = 600
    """Synthetic recordings."""
    steps: int = 200
    """Optimizer steps."""

    def __post_init__(self) -> None:
        if (self.data is None) != (self.database == "synthetic"):
            raise ConfigError("give --database and --data together, or neither for synthetic recordings")


class Stages:
    """Runs commands, prints them, and remembers what each made and how long it took."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rows: list[tuple[str, str, str, float]] = []
        self.began = time.perf_counter()

    def run(
        self, name: str, command: list[str], made: Path | str, note: str = "", more: dict[str, str] | None = None
    ) -> None:
        """Run a command to its end, with more variables in its environment."""
        start = time.perf_counter()
        self.show(name, command)
        if subprocess.run(command, cwd=ROOT, env=environment() | (more or {}), check=False).returncode:
            raise ConfigError(f"the demo ends here: {shlex.join(command)} failed, see above")
        self.done(name, made, note, time.perf_counter() - start)

    def show(self, name: str, command: list[str]) -> None:
        """Print a command as one would type it."""
        words = ["python" if word == sys.executable else word for word in command]
        words = ["deepspeed" if word.endswith("/deepspeed") else word for word in words]
        self.console.rule(name, align="left")
        self.console.print(f"$ {shlex.join(words)}", highlight=False, soft_wrap=True, style="bold")

    def done(self, name: str, made: Path | str, note: str, seconds: float) -> None:
        """Remember a row of the closing table."""
        self.rows.append((name, note, str(made), seconds))

    def result(self, note: str) -> None:
        """Say what came of the last stage."""
        name, _, made, seconds = self.rows[-1]
        self.rows[-1] = (name, note, made, seconds)

    def table(self) -> Table:
        """Return what was made and where."""
        table = Table("stage", "result", "where", "s", title=f"made in {time.perf_counter() - self.began:.0f} s")
        for name, note, made, seconds in self.rows:
            table.add_row(name, note, made, f"{seconds:.0f}")
        return table


def main() -> None:
    """Run all stages."""
    settings = tyro.cli(Demo, description=__doc__)
    out = settings.out.resolve()
    if out.exists():
        if not (out / "demo.json").exists():
            raise ConfigError(f"--out {out} exists and is not an earlier demo; give another folder")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / "demo.json").write_text(json.dumps(config.to_dict(settings)))
    stages = Stages(Console())
    source, shards, run, encoder = (out / name for name in ("recordings", "shards", "run", "encoder"))
    python = sys.executable
    if settings.data is None:
        make = [python, "tools/synthesise.py", str(source), "--records", str(settings.records)]
        stages.run("synthesise", make, source, f"{settings.records} WFDB records")
    else:
        source = settings.data.resolve()
    convert = [python, "tools/convert.py", settings.database, str(source), str(shards), "--workers", str(RANKS)]
    stages.run("convert", [*convert, "--records-per-shard", "200"], shards)
    manifest = read_manifest(shards)
    stages.result(f"{manifest.kept} of {manifest.seen} records kept")
    stages.run("check", [python, "tools/check_shards.py", str(shards)], shards, f"{manifest.kept} records are whole")
    pretrain(stages, settings, shards, run)
    stages.run("export", [python, "tools/export.py", str(run), str(encoder)], encoder, "weights, contract, card")
    stages.run("load", [python, "-c", LOAD, str(encoder)], "a fresh process", "257 Hz, shuffled leads, uV")
    label = balanced_labels(manifest)
    words = [word for one in label for word in ("--label", one)]
    probe = [python, "tools/probe.py", str(encoder), str(shards), *words, "--out", str(out / "probe")]
    stages.run("probe", probe, out / "probe")
    first = json.loads((out / "probe" / "probe.json").read_text())["results"][0]
    values = [first[which]["value"] for which in ("pretrained", "untrained")]
    stages.result(f"{first['label']}: AUROC {values[0]:.3f}, untrained {values[1]:.3f}")
    draw(stages, out, shards, run, encoder, label[0])
    fine_tune(stages, out, shards, encoder, label)
    if settings.data is None:
        predictions = out / "predictions.csv"
        command = [python, "-m", "ecgfm", "predict", str(source), "--classifier", str(out / "finetuned" / "classifier")]
        stages.run("predict", [*command, "--out", str(predictions)], predictions, "probabilities of WFDB files")
    publish(stages, out, shards)
    stages.console.print(stages.table())


LOAD = """
import sys, numpy as np, torch
from ecgfm import ECGEncoder
encoder = ECGEncoder.from_pretrained(sys.argv[1])
leads = ["V6", "V5", "V4", "V3", "V2", "V1", "II", "I"]
time = np.arange(257 * 12) / 257
signal = np.stack([800 * np.exp(-((time % 0.8 - 0.3) / 0.02) ** 2) * (k - 3) for k in range(8)])
features = encoder.embed(signal, rate_hz=257, leads=leads, unit="uV")
print("features", tuple(features.shape), "finite", bool(torch.isfinite(features).all()))
"""

LOAD_BY_NAME = """
import sys
from pathlib import Path
from ecgfm import ECGClassifier
from ecgfm.leads import LEADS
from ecgfm.shards.reader import Shards
classifier = ECGClassifier.from_pretrained(sys.argv[1])
classifier.self_test()
sample = Shards([Path(sys.argv[2])]).sample(0)
probability = classifier.predict_proba(sample.signal_LT, rate_hz=sample.rate_hz, leads=LEADS, unit="mV")
for label, value in zip(classifier.labels, probability[0].tolist(), strict=True):
    print(f"{sample.record}: {label} {value:.3f}")
"""


def pretrain(stages: Stages, settings: Demo, shards: Path, run: Path) -> None:
    """Train on two ranks, kill them all at a third of the way, and go on."""
    every = max(1, settings.steps // 10)
    choices = {
        "--preset": "laptop",
        "--data.shards": shards,
        "--out": run,
        "--optim.schedule-steps": settings.steps,
        "--checkpoint-every": every,
        "--log-every": 5,
    }
    words = [word for name, value in choices.items() for word in (name, str(value))]
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    start = time.perf_counter()
    stages.show("pretrain", command := launch(launcher, words))
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), start_new_session=True)
    while process.poll() is None and len(checkpoints(run)) < 3:
        time.sleep(0.2)
    if process.poll() is not None and process.returncode:
        raise ConfigError("the demo ends here: training failed, see above")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    killed = read_metrics(run)[-1]["step"]
    stages.done("pretrain", run, f"killed (SIGKILL) after step {killed}", time.perf_counter() - start)
    stages.console.print(f"[red]killed all ranks[/red] after step {killed}; the same command goes on:")
    stages.run("resume", launch(launcher, words), run)
    metrics = read_metrics(run)
    stages.result(f"loss {metrics[0]['loss']:.3f} -> {metrics[-1]['loss']:.3f}")


def fine_tune(stages: Stages, out: Path, shards: Path, encoder: Path, labels: list[str]) -> None:
    """Fine-tune a classifier, and its control from random weights; write a report of both."""
    python, runs = sys.executable, {"pretrained": out / "finetuned", "untrained": out / "finetuned-untrained"}
    task = ["--task", "labels", "--task.labels", *labels, "--calibration", "platt"]
    steps = ["--batch-size", "32", "--frozen.steps", "300", "--full.steps", "60", "--full.warmup-steps", "10"]
    for init, folder in runs.items():
        command = [python, "recipes/finetune.py", "--encoder", str(encoder), "--shards", str(shards), *task, *steps]
        stages.run(f"fine-tune {init}", [*command, "--init", init, "--out", str(folder)], folder)
        score = json.loads((folder / "result.json").read_text())["scores"]["test"]["macro"]["auc"]
        stages.result(f"test AUROC {score['value']:.3f} ({score['low']:.3f} to {score['high']:.3f})")
    page = out / "report.html"
    report = [python, "tools/report.py", *map(str, runs.values()), "--out", str(page)]
    stages.run("report", [*report, "--names", *runs], page, "opens in any browser, offline")


def publish(stages: Stages, out: Path, shards: Path) -> None:
    """Publish the classifier on a Hub that lives in this machine's memory, and load it by name in a fresh process."""
    name, python = "alice/ecg-demo", sys.executable
    server = [python, "-m", "tests.hub.hub_server", str(out / "hub-cache")]
    with subprocess.Popen(server, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hub:
        assert hub.stdin and hub.stdout
        variables = json.loads(hub.stdout.readline())
        command = [python, "tools/publish.py", str(out / "finetuned"), name]
        command += ["--untrained", str(out / "finetuned-untrained")]
        stages.run("publish", command, variables["HF_ENDPOINT"], f"{name}, read back bit for bit", variables)
        load = [python, "-c", LOAD_BY_NAME, name, str(shards)]
        stages.run("load by name", load, "a fresh process", "the same classifier from the Hub", variables)
        hub.stdin.close()


def launch(launcher: str, words: list[str]) -> list[str]:
    """Return the deepspeed command on a free port: the default one may be taken."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [launcher, "--num_accelerators", str(RANKS), "--master_port", str(port), "recipes/jepa_vit.py", *words]


def draw(stages: Stages, out: Path, shards: Path, run: Path, encoder: Path, label: str) -> None:
    """Draw a record with its hidden blocks, the curves of the run, and the features."""
    python, pictures = sys.executable, out / "pictures"
    pictures.mkdir()
    scheme = label.partition(":")[0]
    commands = {
        "ecg": ["tools/plot_record.py", str(shards), "--hidden"],
        "run": ["tools/plot_run.py", str(run)],
        "features": ["tools/plot_features.py", str(encoder), str(shards), "--label", scheme],
    }
    for name, command in commands.items():
        path = pictures / f"{name}.png"
        stages.run(f"draw {name}", [python, *command, "--out", str(path)], path)


def balanced_labels(manifest: Manifest, count: int = 3) -> list[str]:
    """Return the labels nearest to half of the records, as scheme:code."""
    found = [
        (min(number, manifest.kept - number), f"{scheme}:{code}")
        for scheme, codes in manifest.labels.items()
        for code, number in codes.items()
    ]
    if not found:
        raise ConfigError(f"{manifest.title} has no labels to probe")
    return [label for _, label in sorted(found, key=lambda item: (-item[0], item[1]))[:count]]


def environment() -> dict[str, str]:
    """Return the environment of the commands: the accelerator that is there, or the CPU."""
    return os.environ | {"PYTHONUNBUFFERED": "1"}


if __name__ == "__main__":
    config.run_command(main)
