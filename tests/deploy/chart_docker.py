"""A pod as the chart renders it, run by Docker: what a kubelet would do with it, as far as a test needs it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from tests.deploy.chart_rendering import Object
from tests.deploy.docker_daemon import Docker


class Pod:
    """`folder` holds its volumes; `secrets` are the files of each Secret by its name. Closed, all its containers are gone."""

    def __init__(self, docker: Docker, spec: Object, folder: Path, secrets: Mapping[str, Mapping[str, str]]) -> None:
        self._docker = docker
        self._spec = spec
        self._containers: list[str] = []
        self.volumes = {each["name"]: folder / each["name"] for each in spec["volumes"]}
        for each in spec["volumes"]:
            self._fill(each, secrets)

    def _fill(self, volume: Object, secrets: Mapping[str, Mapping[str, str]]) -> None:
        group, path = self._spec["securityContext"]["fsGroup"], self.volumes[volume["name"]]
        path.mkdir(parents=True)
        shutil.chown(path, group=group)
        path.chmod(0o2770)
        if said := volume.get("secret"):
            files = secrets[said["secretName"]]
            chosen = [(each["key"], each["path"]) for each in said.get("items", [])] or [(key, key) for key in files]
            publish(path, {name: files[key] for key, name in chosen}, group, said["defaultMode"])
        else:
            assert "emptyDir" in volume, volume

    def fetch(self) -> None:
        """Runs the init containers, one after the other."""
        for each in self._spec.get("initContainers", []):
            self.run(each)

    def run(self, container: Object, *options: str) -> str:
        """What a container prints that is expected to end with 0."""
        return self._docker.run("run", "--name", self._name(), *options, *self._arguments(container))

    def start(self, *options: str) -> str:
        """The name of the running server."""
        name = self._name()
        self._docker.run("run", "--detach", "--name", name, *options, *self._arguments(self._spec["containers"][0]))
        return name

    def close(self) -> None:
        for name in self._containers:
            self._docker.run("rm", "--force", "--volumes", name)

    def _name(self) -> str:
        self._containers.append(f"visionpool-pod-{uuid4().hex[:8]}")
        return self._containers[-1]

    def _arguments(self, container: Object) -> list[str]:
        command = [*container.get("command", [])]
        env = {each["name"]: each["value"] for each in container["env"]}
        arguments = [re.sub(r"\$\((\w+)\)", lambda found: env[found[1]], each) for each in container.get("args", [])]
        return [
            *self._confined(container["securityContext"]),
            *(option for key, value in env.items() for option in ("--env", f"{key}={value}")),
            *(option for each in container["volumeMounts"] for option in ("--volume", self._bound(each))),
            *(("--entrypoint", command[0]) if command else ()),
            container["image"],
            *command[1:],
            *arguments,
        ]

    def _confined(self, context: Object) -> list[str]:
        """Docker's words for both security contexts; its default profile of seccomp is RuntimeDefault."""
        pod = self._spec["securityContext"]
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        return [
            *("--user", f"{pod['runAsUser']}:{pod['runAsGroup']}", "--group-add", str(pod["fsGroup"])),
            *(option for each in context["capabilities"]["drop"] for option in ("--cap-drop", each)),
            *(["--read-only"] if context["readOnlyRootFilesystem"] else []),
            *([] if context["allowPrivilegeEscalation"] else ["--security-opt", "no-new-privileges"]),
        ]

    def _bound(self, mount: Object) -> str:
        return f"{self.volumes[mount['name']]}:{mount['mountPath']}{':ro' if mount.get('readOnly') else ''}"


def publish(folder: Path, files: Mapping[str, str], group: int, mode: int = 0o440) -> None:
    """A Secret's files as the kubelet lays them: links through ..data, which is exchanged for a new one in one step."""
    version = folder / f"..{uuid4().hex}"
    version.mkdir()
    for name, text in files.items():
        (version / name).write_text(text)
        (version / name).chmod(mode)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    for path in (version, *version.iterdir()):
        shutil.chown(path, group=group)
    (folder / "..data_tmp").symlink_to(version.name)
    (folder / "..data_tmp").replace(folder / "..data")
