"""Which way imports point, and who may import what is heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ecgfm

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ecgfm"

# What each folder may import of the package, besides itself. Files at the top level are "words".
BELOW: dict[str, set[str]] = {
    "words": set(),
    "labels": {"words"},
    "signal": {"words"},
    "databases": {"words", "signal"},
    "files": {"words", "signal", "databases"},
    "shards": {"words", "labels", "signal", "databases"},
    "data": {"words", "labels", "signal", "databases", "shards", "kernels"},
    "kernels": {"words"},
    "nn": {"words", "kernels"},
    "encoders": {"words", "signal", "kernels", "nn"},
    "objectives": {"words", "signal", "data", "kernels", "nn", "encoders"},
    "hub": {"words", "signal", "databases", "files", "shards", "kernels", "nn", "encoders"},
    "eval": {"words", "labels", "signal", "databases", "shards", "data", "kernels", "nn", "encoders", "hub"},
    "cli": {"words", "signal", "files", "hub"},
    "train": {
        *("words", "signal", "databases", "shards", "data", "kernels", "nn", "encoders", "objectives", "hub", "eval"),
    },
}
# Libraries that only these files or folders import.
OWNERS: dict[str, tuple[str, ...]] = {
    "wfdb": ("databases/",),
    "h5py": ("databases/", "files/"),
    "pandas": ("databases/",),
    "requests": ("databases/_download_http.py",),
    "scipy": ("signal/highpass.py", "files/mat.py"),
    "edfio": ("files/edf.py",),
    "pydicom": ("files/dicom.py",),
    "pyarrow": ("cli/",),
    "deepspeed": ("train/engine.py", "train/world.py", "train/checkpoint.py", "train/monitor.py"),
    "huggingface_hub": ("hub/",),
    "tyro": ("config.py", "cli/"),
}
HANDED_OUT = (
    ("hub.classifier", "ECGClassifier"),
    ("hub.datasets", "ECGDataset"),
    ("hub.encoder", "ECGEncoder"),
    ("hub.preprocessor", "ECGPreprocessor"),
    ("hub.sklearn", "ECGFeatures"),
)
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]


def imported(source: str) -> Iterator[str]:
    """Yield the dotted name of everything that is imported, at the top or inside of a function.

    `from a.b import c` gives `a.b.c`: whether c is a module or a name makes no difference to its folder.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def folder_of(name: str) -> str:
    """Return the folder of the package that a dotted name below it belongs to."""
    words = name.split(".")
    return words[1] if len(words) > 1 and (PACKAGE / words[1]).is_dir() else "words"


def wrong_way(folder: str, source: str) -> list[str]:
    """Return the imports that a file of `folder` must not have."""
    ours = (name for name in imported(source) if name.split(".")[0] == "ecgfm")
    return [name for name in ours if folder_of(name) not in BELOW[folder] | {folder}]


def not_its_own(name: str, source: str) -> list[str]:
    """Return the libraries that the file `name` imports and others own."""
    libraries = {imported_name.split(".")[0] for imported_name in imported(source)}
    return sorted(library for library in libraries & OWNERS.keys() if not name.startswith(OWNERS[library]))


def test_every_folder_has_its_place_in_the_order() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {"signal", "data", "encoders", "train"} <= folders <= BELOW.keys()


def test_the_order_has_no_circle() -> None:
    for folder, below in BELOW.items():
        assert all(folder not in BELOW[other] for other in below), folder


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("__init__.py", "__main__.py")])
def test_imports_point_down(name: str) -> None:
    folder = name.split("/")[0] if "/" in name else "words"
    assert wrong_way(folder, (PACKAGE / name).read_text()) == []


def test_the_package_itself_hands_out_what_users_need_only() -> None:
    wanted = {f"ecgfm.{home}.{name}" for home, name in HANDED_OUT}
    assert set(wrong_way("words", (PACKAGE / "__init__.py").read_text())) == wanted
    assert {name for _, name in HANDED_OUT} | {"__version__"} == set(ecgfm.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_heavy_libraries_have_one_importer(name: str) -> None:
    assert not_its_own(name, (PACKAGE / name).read_text()) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_library_imports_no_recipe_tool_or_test(name: str) -> None:
    roots = {imported_name.split(".")[0] for imported_name in imported((PACKAGE / name).read_text())}
    assert not roots & {"recipes", "tools", "tests", "slurm"}


def test_the_checks_see_imports_of_every_form() -> None:
    assert wrong_way("hub", "def later():\n    from ecgfm.train.loop import train") == ["ecgfm.train.loop.train"]
    assert wrong_way("hub", "from ecgfm import train, config") == ["ecgfm.train"]
    assert wrong_way("signal", "import ecgfm.databases.base as base") == ["ecgfm.databases.base"]
    assert wrong_way("signal", "import ecgfm\nfrom ecgfm.leads import LEADS\nfrom ecgfm.signal.units import x") == []
    assert not_its_own("shards/writer.py", "if True:\n    import wfdb.io") == ["wfdb"]
    assert not_its_own("train/engine.py", "import deepspeed.ops") == []
    with pytest.raises(AssertionError, match="absolute"):
        list(imported("from . import base"))


def loaded_by(statement: str) -> set[str]:
    """Return the names of all modules that a new Python has after a statement."""
    # What Python loads by itself is in `before`.
    code = f"import sys\nbefore = set(sys.modules)\n{statement}\nprint('\\n'.join(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_but_itself() -> None:
    loaded = loaded_by("import ecgfm")
    outside = {name.split(".")[0] for name in loaded} - sys.stdlib_module_names
    assert outside == {"ecgfm"}
    assert loaded & {"ecgfm.hub", "ecgfm.config", "ecgfm.leads"} == set()


def test_settings_are_read_without_torch_or_numpy() -> None:
    roots = {name.split(".")[0] for name in loaded_by("import ecgfm.config, ecgfm.errors, ecgfm.parts")}
    assert roots - sys.stdlib_module_names == {"ecgfm"}


def test_the_encoder_for_users_needs_no_training_library() -> None:
    loaded = loaded_by("from ecgfm import ECGEncoder\nassert ECGEncoder.__name__ == 'ECGEncoder'")
    assert "torch" in loaded and "ecgfm.hub.encoder" in loaded
    roots = {name.split(".")[0] for name in loaded}
    assert not roots & {"deepspeed", "wfdb", "h5py", "pandas", "tyro", "rich", "webdataset", "tensorboard", "sklearn"}
    assert not {name for name in loaded if name.startswith(("ecgfm.train", "ecgfm.shards", "ecgfm.data"))}


def test_the_training_loop_loads_no_reader_of_databases() -> None:
    roots = {name.split(".")[0] for name in loaded_by("import ecgfm.train.loop")}
    assert not roots & {"wfdb", "h5py", "pandas", "huggingface_hub", "deepspeed", "sklearn"}
