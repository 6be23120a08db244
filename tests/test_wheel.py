"""The wheel that users install has everything in it: it lists its models outside the checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import efficient_vits

ROOT = Path(__file__).parents[1]


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("dist")
    # The build's requirements are installed already; tests run offline.
    build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out))
    run(*build, str(ROOT))
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_lists_its_models_outside_the_checkout(wheel, tmp_path):
    target = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps")
    run(*pip, "--no-index", "--target", str(target), str(wheel))
    code = (
        "import json, efficient_vits;"
        "print(json.dumps([efficient_vits.__file__, efficient_vits.list_models()]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    file, names = json.loads(run(sys.executable, "-c", code, cwd=tmp_path, env=environment))
    assert Path(file).is_relative_to(target)
    assert names == efficient_vits.list_models()


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    rooms = {name.split("/")[0] for name in names}
    assert {room for room in rooms if not room.endswith(".dist-info")} == {"efficient_vits"}
    assert {"efficient_vits/py.typed", "efficient_vits/catalog/models.csv"} <= set(names)
    data = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("efficient_vits/results/data/*.csv")}
    assert len(data) == 8
    assert data <= set(names)
    kinds = {".html", ".css", ".js"}
    page = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("efficient_vits/plots/explore/*.*")}
    page = {name for name in page if Path(name).suffix in kinds}
    assert {Path(name).suffix for name in page} == kinds
    assert page <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    packaged = {name for name in names if name.endswith(".py")}
    source = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("efficient_vits/**/*.py")}
    assert packaged == source
