"""What starts sweeps elsewhere: the same line in each file, and each as its engine reads it."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sweeper.cli import app

ROOT = Path(__file__).parents[1]
LAUNCH, DOCKER = ROOT / "launch", ROOT / "docker"
LINE = (
    'sweeper launch "$GRID" --sweep-dir "$SWEEP_DIR" ${STORE:+--store "$STORE"} --address auto -y'
)
VALUES = {
    "GRID": "grids/digits.yaml",
    "SWEEP_DIR": "runs/digits",
    "STORE": "s3://bucket/digits",
    "SHARD": "2/8",
    "stop_after": "600",
}


def text_of(name: str) -> str:
    return (LAUNCH / name).read_text()


def argv(line: str, **values: str) -> list[str]:
    """The words that a shell makes of a line, its comment taken off."""
    found = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"],
        env={"PATH": os.environ["PATH"], **VALUES, **values},
        capture_output=True,
        text=True,
        check=True,
    )
    return found.stdout.split("\0")[:-1]


def parsed(words: list[str]) -> dict[str, Any]:
    """The options of a command line of `sweeper`; fails on one that it does not know."""
    command, words = typer.main.get_command(app), words[1:]
    context = None
    while hasattr(command, "resolve_command"):
        context = command.make_context("sweeper", words, parent=context)
        rest = [*context._protected_args, *context.args]
        _, command, words = command.resolve_command(context, rest)
    return command.make_context("sweeper", words, parent=context).params


# --- the line --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["slurm.sbatch", "ray-cluster.yaml", "rayjob.yaml"])
def test_every_file_ends_in_the_same_launch_line(name: str):
    text = text_of(name)
    assert text.count("sweeper launch") - text.count("`sweeper launch`") == 1
    assert LINE in text
    rest = text.split(LINE)[1].replace("\\\n", "").split("\n")
    line = LINE + rest[0].partition(" &")[0].replace('"${options[@]}"', "--limit 3")
    for store in ("", VALUES["STORE"]):
        found = parsed(argv(line, STORE=store))
        assert str(found["grid"]) == VALUES["GRID"]
        assert str(found["sweep_dir"]) == VALUES["SWEEP_DIR"]
        assert (found["store"] or "") == store
        assert (found["address"], found["yes"]) == ("auto", True)
    assert len([line for line in rest[1:] if line.strip()]) <= 1  # it ends the file


def test_the_readme_shows_that_line_and_only_commands_that_exist():
    text = text_of("README.md")
    shown = [line[2:] for line in re.findall(r"^\$ .*$", text, re.MULTILINE)]
    commands = [line for line in shown if line.startswith("sweeper ")]
    assert len(commands) >= 8
    inline = re.findall(r"`(sweeper [a-z]+ [^`]*)`", text)
    for command in [LINE, *commands, *inline]:
        parsed(argv(command.partition(" #")[0]))
    assert f"\n{LINE}\n" in text
    for path in re.findall(r"(?:launch|docker|grids)/[\w.-]+\w", text):
        assert (ROOT / path).exists(), path


def test_every_command_that_a_file_names_exists():
    for path in LAUNCH.iterdir():
        comments = re.findall(r"#\s+(sweeper \w+ [^#`\n\[]*)", path.read_text())
        for command in comments:
            parsed(argv(command))


# --- Slurm -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["slurm.sbatch", "slurm-array.sbatch"])
def test_a_job_is_told_of_its_end_in_time_and_may_be_requeued(name: str):
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)
    options = re.findall(r"^#SBATCH (\S+)", text_of(name), re.MULTILINE)
    assert {"--signal=B:USR1@300", "--requeue", "--open-mode=append"} <= {*options}
    assert text_of(name).splitlines()[0] == "#!/bin/bash"


@pytest.fixture
def begun(tmp_path: Path) -> Callable[..., str]:
    """What `slurm.sbatch` takes the share and the sweep directory for, or refuses."""
    head = text_of("slurm.sbatch").partition("export SLURM_EXPORT_ENV")[0]
    (tmp_path / "slurm.sbatch").write_text(f'{head}\necho "${{SHARD:-all}} $SWEEP_DIR"')
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "file.yaml").write_text("{name: mine, axes: {seed: [1]}}")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}

    def begin(*options: str, **variables: str) -> str:
        command = ["bash", "slurm.sbatch", "file.yaml", *options]
        given = {**kept, "SLURM_JOB_ID": "7", **variables}
        done = subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, text=True)
        assert done.returncode == (2 if "error: " in done.stdout else 0), done.stderr
        return done.stdout.strip()

    return begin


def array(task: int, text: str) -> dict[str, str]:
    """What Slurm tells a task of `--array=text`."""
    ids = [number for part in text.split(",") for number in _range(part)]
    assert task in ids
    names = {"ID": task, "COUNT": len(ids), "MIN": min(ids), "MAX": max(ids)}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def test_a_job_has_the_directory_that_sweeper_gives_it(begun: Callable[..., str]):
    assert begun("--limit", "3") == "all runs/mine"  # by the grid's name, not by its file's
    assert begun(SWEEP_DIR="elsewhere") == "all elsewhere"
    assert begun(SHARD="2/3") == "2/3 runs/mine-2-of-3"
    for option in ("--sweep-dir=x", "--shard"):
        assert begun(option, "1/2").startswith(f"error: {option}: given behind the grid")


def test_an_arrays_tasks_have_the_shares_and_the_directories_that_sweeper_gives_them(
    begun: Callable[..., str], tmp_path: Path
):
    assert begun(**array(1, "1-8")) == "1/8 runs/mine-1-of-8"
    assert begun(**array(8, "1-8")) == "8/8 runs/mine-8-of-8"
    assert begun(**array(1, "1")) == "1/1 runs/mine-1-of-1"
    for there in ("mine-1-of-8", "mine-too-1-of-4"):
        (tmp_path / "runs" / there).mkdir(parents=True)
    assert begun(**array(2, "1-8")) == "2/8 runs/mine-2-of-8"
    for text in ("3", "1,3", "1-3"):  # submitted again, a part of the eight
        assert begun(**array(3 if "3" in text else 1, text), N_SHARDS="8").startswith("3/8 ")
    assert begun(**array(1, "1-4"), N_SHARDS="4") == "1/4 runs/mine-1-of-4"


@pytest.mark.parametrize(
    ("task", "text", "variables"),
    [
        (0, "0-7", {}),
        (3, "3", {}),
        (1, "1,3", {}),
        (2, "2-8", {}),
        (0, "0-7", {"N_SHARDS": "8"}),
        (9, "9", {"N_SHARDS": "8"}),
        (1, "1-8", {"N_SHARDS": "many"}),
        (1, "1-8", {"SWEEP_DIR": "runs/one"}),
    ],
)
def test_an_array_whose_shares_are_not_certain_is_refused(
    begun: Callable[..., str], task: int, text: str, variables: dict[str, str]
):
    said = begun(**array(task, text), **variables)
    assert said.startswith("error: ")
    assert "\n\nhint: " in said


def test_a_part_of_an_array_is_not_taken_for_a_smaller_one(
    begun: Callable[..., str], tmp_path: Path
):
    (tmp_path / "runs" / "mine-5-of-8").mkdir(parents=True)
    for text in ("1", "1-4"):
        said = begun(**array(1, text))
        assert "runs/mine-5-of-8 is there; N_SHARDS tells which" in said


# --- Ray and Kubernetes ----------------------------------------------------------------------


def test_ray_accepts_the_autoscaling_cluster():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(text_of("ray-cluster.yaml"))
    filled = prepare_config(config)
    validate_config(filled)
    types = filled["available_node_types"]
    head = types[config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]  # it holds the driver
    assert types["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types["gpu"]["max_workers"] <= config["max_workers"]


# github.com/ray-project/kuberay, ray-operator/apis/ray/v1: rayjob_types.go, raycluster_types.go
RAY_JOB = {
    *("activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate"),
    *("metadata", "clusterSelector", "submitterConfig", "managedBy", "deletionStrategy"),
    *("entrypoint", "runtimeEnvYAML", "jobId", "submissionMode", "entrypointResources"),
    *("entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished"),
    *("shutdownAfterJobFinishes", "suspend"),
}
RAY_CLUSTER = {
    *("headGroupSpec", "workerGroupSpecs", "rayVersion", "enableInTreeAutoscaling"),
    *("autoscalerOptions", "headServiceAnnotations", "gcsFaultToleranceOptions", "suspend"),
}
GROUP = {
    *("groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "idleTimeoutSeconds"),
    *("rayStartParams", "template", "suspend", "scaleStrategy"),
}


def test_the_ray_job_has_the_fields_that_kuberay_documents():
    job = yaml.safe_load(text_of("rayjob.yaml"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    cluster = spec["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    assert spec.keys() <= RAY_JOB
    assert cluster.keys() <= RAY_CLUSTER
    assert workers.keys() <= GROUP
    assert cluster["headGroupSpec"].keys() <= {"rayStartParams", "template", "serviceType"}
    assert spec["submissionMode"] == "HTTPMode"  # by the others a wrong shell fills the line in
    assert f"ray=={cluster['rayVersion']}" in (DOCKER / "requirements.lock").read_text()
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    for group in (cluster["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        check_pod(group["template"]["spec"])
    asked = workers["template"]["spec"]["containers"][0]["resources"]
    assert asked["requests"]["nvidia.com/gpu"] == asked["limits"]["nvidia.com/gpu"]


def check_pod(pod: dict[str, Any]) -> None:
    """No secret but by reference, no root, every mount a volume."""
    (container,) = pod["containers"]
    names = [variable["name"] for variable in container["env"]]
    assert not [name for name in names if re.search("KEY|SECRET|TOKEN|PASSWORD", name)]
    assert {*VALUES} - {"SHARD", "stop_after"} <= {*names}
    assert [list(source) for source in container["envFrom"]] == [["secretRef"]]
    assert pod["securityContext"]["runAsNonRoot"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


# --- the image -------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Those of the Dockerfile, continued lines joined."""
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    joined = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(None, 1)) for line in joined if line.strip()]  # type: ignore[misc]


def arguments(name: str) -> list[str]:
    return [found for instruction, found in instructions() if instruction == name]


def is_ignored(path: str) -> bool:
    """Whether `.dockerignore` leaves it out: the last pattern that fits it decides."""
    ignored = False
    parents = [path, *map(str, Path(path).parents)]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if line and not line.startswith("#"):
            names = [*parents, *(Path(part).name for part in parents)] if "**/" in line else parents
            if any(fnmatch.fnmatch(name, pattern) for name in names):
                ignored = not line.startswith("!")
    return ignored


def test_the_image_is_pinned_and_runs_as_an_ordinary_user():
    known = {"FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    names = [name for name, _ in instructions()]
    assert {*names} <= known  # no ADD, which takes URLs, and no ARG, which is kept in the history
    (base,) = arguments("FROM")
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu\d\d\.\d\d", base)
    (user,) = arguments("USER")
    assert int(user) > 0
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert "RUN" not in names[names.index("USER") :]
    for name in ("ENTRYPOINT", "CMD"):
        assert all(isinstance(word, str) for word in yaml.safe_load(*arguments(name)))  # exec form
    (health,) = arguments("HEALTHCHECK")
    hidden, *command = shlex.split(health.split(" CMD ")[1].partition(" ||")[0])
    assert hidden == "CUDA_VISIBLE_DEVICES="  # a look at them would take memory from the trials
    assert parsed(command) is not None
    (packages,) = (line for line in arguments("RUN") if "apt-get install" in line)
    for needed in ("gcc", "openssh-client", "rsync", "wget"):  # by Triton, `ray up` and KubeRay
        assert f" {needed} " in packages
    assert not re.search("KEY|SECRET|TOKEN|PASSWORD", " ".join(arguments("ENV")))


def test_what_the_image_copies_is_there_and_nothing_else_is_sent():
    for line in arguments("COPY"):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert not is_ignored(source), source
    for left_out in (".git/config", "data/x", "runs/x", ".venv/bin/pip", "sweeper/__pycache__/a"):
        assert is_ignored(left_out), left_out
    assert not is_ignored("sweeper/cli.py")


def test_the_image_is_made_by_the_steps_of_make():
    script = "sh docker/install.sh"
    steps = [line for line in arguments("RUN") if script in line]
    assert [line.removeprefix(f"{script} /opt/venv ") for line in steps] == [
        "--dependencies",
        "cluster,s3",
    ]
    names = [name for name, _ in instructions()]
    copied = [i for i, found in enumerate(instructions()) if found == ("COPY", "sweeper sweeper")]
    assert names[: copied[0]].count("RUN") == 2  # dependencies before code
    for target in (".installed", ".installed-dev"):
        command = ["make", "--dry-run", "--always-make", f".venv/{target}"]
        shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert f"{script} .venv" in shown.stdout
        assert "pip install" not in shown.stdout


# --- the lock --------------------------------------------------------------------------------


def locked() -> dict[str, str]:
    """The version of each package; fails where a line says anything else, such as an index."""
    lines = (DOCKER / "requirements.lock").read_text().splitlines()
    found = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    return {canonicalize_name(match[1]): match[2] for match in found if match}


def test_the_lock_pins_all_that_is_asked_for_within_its_range():
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    extras = project["optional-dependencies"]
    versions = locked()
    for text in [*project["dependencies"], *extras["cluster"], *extras["s3"]]:
        asked = Requirement(text)
        name = canonicalize_name(asked.name)
        assert versions[name] in asked.specifier, text


def test_the_lock_pins_what_that_needs_too():
    versions = locked()
    here = [name for name, version in versions.items() if is_installed(name, version)]
    assert "torch" in here or len(here) > 20
    for name in here:
        for text in metadata.requires(name) or ():
            asked = Requirement(text)
            extras = ("", "default", "tune") if name == "ray" else ("",)
            if asked.marker is None or any(asked.marker.evaluate({"extra": e}) for e in extras):
                assert versions[canonicalize_name(asked.name)] in asked.specifier, f"{name}: {text}"


def is_installed(name: str, version: str) -> bool:
    try:
        return metadata.version(name) == version
    except metadata.PackageNotFoundError:
        return False
