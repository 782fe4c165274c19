"""The steps of the Dockerfile as a script, without Docker: the package, the run's files for another user, health."""

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.factories.ports import free_port
from tests.factories.runs import environment, needs_encoder
from tests.factories.servers import make_run

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
OTHER_USER = 65534
IS_ROOT = os.geteuid() == 0 and shutil.which("setpriv") is not None
TOOLS = {  # in place of the image's
    "pip": 'exec {python} -m pip "$@" --quiet --no-deps --no-build-isolation --target {site}',
    "useradd": "exit 0",
}


class Image:
    """A folder that the instructions fill as Docker fills an image; its paths lie in the folder."""

    def __init__(self, folder: Path, context: Path) -> None:
        self.folder, self.context, self.directory, self.user = folder, context, folder, ""
        self.variables = {"PATH": f"{folder}/tools:{folder}/site/bin:{os.environ['PATH']}"}
        self.commands: dict[str, list[str]] = {}
        for name in ("tools", "tmp", "site"):
            (folder / name).mkdir(parents=True)
        (folder / "tmp").chmod(0o1777)
        for name, code in TOOLS.items():
            tool = folder / "tools" / name
            tool.write_text("#!/bin/sh\n" + code.format(python=sys.executable, site=folder / "site") + "\n")
            tool.chmod(0o755)

    def inside(self, text: str) -> str:
        return re.sub(r"(?<![\w.])/(build|model|tmp)\b", rf"{self.folder}/\1", text)

    def run(self, instruction: str, value: str) -> None:
        if instruction == "WORKDIR":
            self.directory = Path(self.inside(value))
            self.directory.mkdir(exist_ok=True)
        elif instruction == "ARG":
            self.variables |= dict([value.replace('"', "").split("=")])
        elif instruction == "ENV":
            self.variables |= dict(part.split("=") for part in self.inside(value).split())
        elif instruction == "COPY":
            self.copy(*shlex.split(value.replace("${RUN}", self.variables.get("RUN", ""))))
        elif instruction == "RUN":
            variables = os.environ | self.variables
            subprocess.run(["sh", "-ec", self.inside(value)], cwd=self.directory, env=variables, check=True)
        elif instruction == "HEALTHCHECK":
            self.commands[instruction] = json.loads(value.partition("CMD ")[2])
        elif instruction in ("ENTRYPOINT", "CMD"):
            self.commands[instruction] = [self.inside(word) for word in json.loads(value)]
        elif instruction == "USER":
            self.user = value
        else:
            assert instruction in ("FROM", "EXPOSE"), instruction

    def copy(self, *words: str) -> None:
        modes = [word.removeprefix("--chmod=") for word in words if word.startswith("--")]
        *sources, target = [word for word in words if not word.startswith("--")]
        path = self.directory / self.inside(target)
        for source in sources:
            if (self.context / source).is_dir():
                shutil.copytree(self.context / source, path)
            else:
                shutil.copy(self.context / source, path)
        for mode in modes:
            subprocess.run(["chmod", "-R", mode, path], check=True)

    def start(self, words: list[str]) -> "subprocess.Popen[bytes]":
        """Runs a command that may read the model's files as another user may, if this process can arrange that."""
        variables = environment(self.folder / "tmp") | self.variables | {"PYTHONPATH": str(self.folder / "site")}
        if self.user and IS_ROOT:  # as root without its rights over the files of others
            for path in (self.folder / "model").rglob("*"):
                os.chown(path, OTHER_USER, OTHER_USER)
            words = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *words]
        return subprocess.Popen(words, cwd=self.directory, env=variables)


def test_docs_show_the_dockerfile() -> None:
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    assert f"```dockerfile\n{DOCKERFILE}```" in page


@pytest.mark.slow
@needs_encoder
def test_dockerfile_serves_as_another_user(tmp_path: Path) -> None:
    context = tmp_path / "context"
    shutil.copytree(ROOT / "src", context / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "constraints.txt"):
        shutil.copy(ROOT / name, context)
    run = make_run(context / "runs" / "tickets")
    for path in run.iterdir():
        path.chmod(0o600)
    image = Image(tmp_path / "image", context)
    for line in DOCKERFILE.replace("\\\n", "").splitlines():
        if line and not line.startswith("#"):
            image.run(*line.split(" ", 1))
    model = image.folder / "model"
    assert all(path.stat().st_mode & stat.S_IROTH for path in model.iterdir())
    assert not (image.folder / "build").exists()
    port = str(free_port())
    server = image.start([*image.commands["ENTRYPOINT"], *image.commands["CMD"], "--port", port])
    try:
        health = [word.replace("8080", port) for word in image.commands["HEALTHCHECK"]]
        health[0] = sys.executable
        while image.start(health).wait():
            assert server.poll() is None, "the server ended"
            time.sleep(1)
    finally:
        server.terminate()
        assert server.wait(timeout=60) == 0
