"""The image: its build command and, with WAVESPACE_TEST_IMAGE=1, its content."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from standins.runpod_server import Pod, ProcessRuntime, RunpodCore, RunpodServer, start_command

ROOT = Path(__file__).parents[1]
TOOLS = ["bash", "cat", "cp", "dirname", "env", "git", "grep", "id", "mkdir", "mktemp", "rm", "sed"]
NAME = "localhost/wavespace:test"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A PATH with a shell's usual tools, and neither docker nor buildah."""
    for tool in TOOLS:
        if found := shutil.which(tool):
            (tmp_path / tool).symlink_to(found)
    return tmp_path


def build(path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(path), "HOME": str(path)} | variables
    return subprocess.run([ROOT / "docker/build.sh", *arguments], env=environment, capture_output=True, text=True)


def test_without_docker_or_buildah_the_build_says_what_it_needs(path: Path) -> None:
    done = build(path)
    assert done.returncode == 1
    assert "needs a docker daemon or buildah" in done.stderr


def test_a_builders_settings_are_lent_as_secrets_and_are_no_argument(path: Path) -> None:
    docker = path / "docker"
    docker.write_text(f"""#!/bin/sh
[ "$1" = build ] || exit 0
printf '%s\\n' "$@" > {path}/arguments
for word in "$@"; do case "$word" in id=*,src=*) cat "${{word#*src=}}" >> {path}/lent;; esac; done
""")
    docker.chmod(0o755)
    certificate = path / "certificate.pem"
    certificate.write_text("a certificate")
    index = "https://me:pass'word@index.example/simple"
    done = build(
        path, "--build-arg", "RUN_AS=root", UV_INDEX_URL=index, SSL_CERT_FILE=str(certificate), IMAGE="you/it:1"
    )
    assert done.returncode == 0, done.stderr
    arguments = (path / "arguments").read_text().splitlines()
    assert arguments[:3] == ["build", "--file", "docker/Dockerfile"]
    assert arguments[-5:] == ["--tag", "you/it:1", "--build-arg", "RUN_AS=root", "."]
    assert not any("index.example" in word for word in arguments)
    lent = (path / "lent").read_text()
    assert "a certificate" in lent
    shell = 'eval "$(grep UV_INDEX_URL)"; printf %s "$UV_INDEX_URL"'
    assert subprocess.run(["bash", "-c", shell], input=lent, capture_output=True, text=True).stdout == index
    left = [word.partition("src=")[2] for word in arguments if word.startswith("id=")]
    assert left
    assert not any(Path(file).exists() for file in left)


# The image itself: minutes, and gigabytes.


@pytest.fixture(scope="module")
def image() -> str:
    if os.environ.get("WAVESPACE_TEST_IMAGE") != "1":
        pytest.skip("building the image takes minutes and 15 GB: set WAVESPACE_TEST_IMAGE=1")
    if not shutil.which("buildah"):
        pytest.skip("needs buildah (apt-get install buildah debootstrap)")
    subprocess.run([ROOT / "docker/build.sh"], env=os.environ | {"IMAGE": NAME}, check=True)
    return NAME


def buildah(*words: str) -> str:
    done = subprocess.run(["buildah", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout.strip()


@pytest.fixture
def run(image: str) -> Iterator[Callable[..., str]]:
    """A fresh container of the image; call it with a command."""
    box = buildah("from", image)
    yield lambda *words: buildah("run", "--isolation", "chroot", box, "--", *words)
    buildah("rm", box)


def test_the_image_has_wavespace_its_configurations_and_the_launcher(run: Callable[..., str]) -> None:
    from wavespace import __version__

    assert run("wavespace", "--version") == __version__
    assert "PianoRoll" in run("wavespace", "check", "task=piano_roll")
    assert "runpod" in run("wavespace", "train", "--info", "plugins").lower()
    assert run("python", "-c", "import torch; print(torch.ones(2).sum().item())") == "2.0"


def test_the_image_runs_as_a_user_who_can_write_where_it_starts(run: Callable[..., str]) -> None:
    assert run("sh", "-c", "id -un; pwd; touch here && test ! -w /opt/venv && echo held").split() == [
        "wavespace",
        "/workspace",
        "held",
    ]


def test_nothing_of_the_builder_is_in_the_image(run: Callable[..., str], image: str) -> None:
    names = set(run("ls", "-A", "/opt/wavespace").split())
    allowed = {"conf", "launchers", "src", "LICENSE", "README.md", "pyproject.toml", "requirements.lock"}
    assert names <= allowed
    assert run("sh", "-c", "cat /run/secrets/* 2>/dev/null; ls -A /var/cache/uv 2>/dev/null; true") == ""
    about = json.loads(buildah("inspect", "--type", "image", image))["Docker"]["config"]
    assert not about["Entrypoint"]
    assert not [text for text in about["Env"] if text.startswith(("PIP_", "UV_", "SSL_", "REQUESTS_"))]


def test_after_a_change_of_code_the_packages_are_not_installed_anew(image: str) -> None:
    note = ROOT / "src/wavespace/a_change_of_code.py"
    note.write_text("")
    try:
        environment = os.environ | {"IMAGE": f"{NAME}-changed"}
        done = subprocess.run([ROOT / "docker/build.sh"], env=environment, capture_output=True, text=True)
    finally:
        note.unlink()
    assert done.returncode == 0, done.stderr
    steps = done.stdout.split("STEP ")
    [packages] = [step for step in steps if "--require-hashes" in step]
    [code] = [step for step in steps if "COPY . " in step]
    assert "Using cache" in packages
    assert "Using cache" not in code
    buildah("rmi", f"{NAME}-changed")


class Boxes(ProcessRuntime):
    """Pods whose start command runs in a container of the image, on this machine's network."""

    def __init__(self, folder: Path, core: RunpodCore) -> None:
        super().__init__(folder, {"PATH": os.environ["PATH"]}, core)
        self.boxes: dict[str, str] = {}

    def command(self, pod: Pod) -> list[str]:
        if pod.id not in self.boxes:
            self.boxes[pod.id] = buildah("from", pod.image)
        own = {k: v for k, v in self.environment(pod).items() if k not in (*self.base, "HOME", "TMPDIR")}
        variables = [word for name, value in own.items() for word in ("--env", f"{name}={value}")]
        return [
            "buildah",
            "run",
            "--isolation",
            "chroot",
            *variables,
            self.boxes[pod.id],
            "--",
            *start_command(pod.args),
        ]


def test_a_sweep_of_two_jobs_runs_in_the_image_and_its_pod_ends_itself(image: str, tmp_path: Path) -> None:
    from standins.wandb_server import WandbCore, WandbServer
    from training import RENDERED, TRAINER

    core = RunpodCore()
    core.start = boxes = Boxes(tmp_path, core)
    with WandbServer(WandbCore()) as wandb, RunpodServer(core) as runpod:
        core.secrets["WANDB_API_KEY"] = wandb.env["WANDB_API_KEY"]
        own = {"image": image, "max_cost": 2, "max_pods": 1, "poll_seconds": 1, "detach": True}
        words = ["hydra/launcher=runpod", *(f"hydra.launcher.{key}={value}" for key, value in own.items()), "seed=1,2"]
        environment = os.environ | wandb.env | runpod.env | {"WAVESPACE_RUNS": str(tmp_path / "runs")}
        command = [sys.executable, "-m", "wavespace", "train", "-m", *words, *RENDERED, *TRAINER]
        try:  # once the pod is rented, nobody looks after it
            done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
            until(lambda: not core.list(), 240)
        finally:
            core.close()
            for box in boxes.boxes.values():
                buildah("rm", box)
        [pod] = core.pods.values()
        report = done.stdout + done.stderr + boxes.log(pod)
        assert pod.ended_by == "pod", report
        assert pod.starts == 1
        finished = [run for run in wandb.core.runs.values() if run.state == "finished"]
        assert len(finished) == 2, report
        assert {run.config["commit"] for run in finished} != {None}
        assert (wandb.drift, runpod.drift) == ([], [])


def until(condition: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.2)
