"""What has to hold for the objects of any values: each rule yields what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.deploy.chart_rendering import NAMESPACE, RELEASE, Object

PORTS = {"http", "grpc", "metrics"}
LABELS = {
    "app.kubernetes.io/name": "visionpool",
    "app.kubernetes.io/instance": RELEASE,
    "app.kubernetes.io/part-of": "visionpool",
    "app.kubernetes.io/managed-by": "Helm",
    "app.kubernetes.io/version": "0.1.0",
    "helm.sh/chart": "visionpool-0.1.0",
}
# Those that the restricted level of Kubernetes' Pod Security allows.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected"}
RESTRICTED_VOLUMES = VOLUMES | {"secret"}


def pods(objects: list[Object]) -> Iterator[tuple[str, Object, Object]]:
    """Name, metadata and spec of each pod that the objects would lead to."""
    for each in objects:
        if each["kind"] == "Deployment":
            yield "Deployment", each["spec"]["template"]["metadata"], each["spec"]["template"]["spec"]
        elif each["kind"] == "Pod":
            yield "Pod", each["metadata"], each["spec"]


def containers(spec: Object) -> list[Object]:
    return [*spec.get("initContainers", []), *spec["containers"]]


def named(objects: list[Object]) -> Iterator[str]:
    """Names are unique within a kind, and labels are the standard ones."""
    seen: set[tuple[str, str]] = set()
    for each in objects:
        metadata, key = each["metadata"], (each["kind"], each["metadata"]["name"])
        if key in seen:
            yield f"{key} is there twice"
        seen.add(key)
        if metadata["namespace"] != NAMESPACE or len(metadata["name"]) > 63:
            yield f"{key}: namespace {metadata['namespace']}, name of {len(metadata['name'])} characters"
        yield from (
            f"{key}: label {label}" for label, value in LABELS.items() if metadata["labels"].get(label) != value
        )


def restricted(objects: list[Object], *, host_path: bool) -> Iterator[str]:
    """The restricted level of Pod Security, and a root file system that cannot be written; no token anywhere."""
    for name, _, spec in pods(objects):
        context = spec["securityContext"]
        if not context["runAsNonRoot"] or context["runAsUser"] != 10001:
            yield f"{name}: runs as {context}"
        if spec["automountServiceAccountToken"] or any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{name}: has a token, or namespaces of the host"
        allowed = RESTRICTED_VOLUMES | ({"hostPath"} if host_path else set())
        yield from (f"{name}: volume {each}" for each in spec["volumes"] if len(each) != 2 or not set(each) & allowed)
        for each in containers(spec):
            yield from (f"{name}/{each['name']}: {fault}" for fault in _unrestricted(each["securityContext"]))


def _unrestricted(context: Object) -> Iterator[str]:
    wanted: dict[str, Any] = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    yield from (f"{key} is {context.get(key)}" for key, value in wanted.items() if context.get(key) != value)
    if context.get("privileged") or context.get("runAsUser") == 0:
        yield "is privileged"


def mounted(objects: list[Object]) -> Iterator[str]:
    """Each mount has its volume, each volume a mount; /tmp can be written; no path is mounted over twice."""
    for name, _, spec in pods(objects):
        volumes = [each["name"] for each in spec["volumes"]]
        mounts = [mount for each in containers(spec) for mount in each["volumeMounts"]]
        if sorted(volumes) != sorted({mount["name"] for mount in mounts}):
            yield f"{name}: volumes {volumes}, mounts {mounts}"
        for each in containers(spec):
            paths = [mount["mountPath"] for mount in each["volumeMounts"]]
            if "/tmp" not in paths or len(paths) != len(set(paths)):
                yield f"{name}/{each['name']}: mounts {paths}"


def probed(objects: list[Object]) -> Iterator[str]:
    """All probes ask the plain metrics port; readiness and start-up for ready, liveness for live."""
    for name, _, spec in pods(objects):
        for each in spec["containers"]:
            if name == "Pod":
                continue
            for probe, path in (("startup", "ready"), ("readiness", "ready"), ("liveness", "live")):
                asked = each[f"{probe}Probe"]["httpGet"]
                if asked != {"path": f"/health/{path}", "port": "metrics"}:
                    yield f"{probe} asks {asked}"
            if {port["name"] for port in each["ports"]} != PORTS:
                yield f"ports {each['ports']}"


def patient(objects: list[Object]) -> Iterator[str]:
    """Kubernetes waits longer than the server takes to drain."""
    for name, _, spec in pods(objects):
        if name == "Deployment":
            (server,) = spec["containers"]
            env = {each["name"]: each.get("value") for each in server["env"]}
            sleep = server.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            longest = sleep + float(env["VISIONPOOL_DRAIN_DELAY"]) + float(env["VISIONPOOL_GRACE_PERIOD"])
            if spec["terminationGracePeriodSeconds"] <= longest:
                yield f"{spec['terminationGracePeriodSeconds']} s for a drain of {longest} s"


def selecting(objects: list[Object]) -> Iterator[str]:
    """What selects pods finds the server's, never the test's; Services' ports are the pod's."""
    labels = {name: metadata["labels"] for name, metadata, _ in pods(objects)}
    for each in objects:
        if each["kind"] == "ServiceMonitor":
            yield from _monitored(each, objects)
            continue
        for selector in _selectors(each):
            if not selector.items() <= labels["Deployment"].items():
                yield f"{each['kind']} {each['metadata']['name']} selects {selector}"
            if selector.items() <= labels.get("Pod", {}).items():
                yield f"{each['kind']} {each['metadata']['name']} selects the test"
        if each["kind"] == "Service":
            unknown = {port["targetPort"] for port in each["spec"]["ports"]} - PORTS
            yield from (f"Service {each['metadata']['name']}: no port {port}" for port in unknown)


def _monitored(monitor: Object, objects: list[Object]) -> Iterator[str]:
    """One Service, and no second one, offers the ports that Prometheus scrapes."""
    selector = monitor["spec"]["selector"]["matchLabels"]
    (port,) = [each["port"] for each in monitor["spec"]["endpoints"]]
    offering = [
        each["metadata"]["name"]
        for each in objects
        if each["kind"] == "Service"
        and selector.items() <= each["metadata"]["labels"].items()
        and port in [offered["name"] for offered in each["spec"]["ports"]]
    ]
    if offering != ["demo-visionpool"]:
        yield f"ServiceMonitor finds {port} at {offering}"


def _selectors(each: Object) -> Iterator[dict[str, str]]:
    spec = each.get("spec", {})
    match each["kind"]:
        case "Service":
            yield spec["selector"]
        case "Deployment":
            yield spec["selector"]["matchLabels"]
            for spread in spec["template"]["spec"].get("topologySpreadConstraints", []):
                yield spread["labelSelector"]["matchLabels"]
        case "PodDisruptionBudget":
            yield spec["selector"]["matchLabels"]
        case "NetworkPolicy":
            yield spec["podSelector"]["matchLabels"]


def reaching(objects: list[Object]) -> Iterator[str]:
    """Ingresses and routes lead to ports of a Service; scalers to the Deployment."""
    services = {each["metadata"]["name"]: each["spec"]["ports"] for each in objects if each["kind"] == "Service"}
    for each in objects:
        for name, port in _backends(each):
            offered = [value for one in services.get(name, []) for value in (one["name"], one["port"])]
            if port not in offered:
                yield f"{each['kind']} leads to {name}:{port}"
        if each["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            target = each["spec"]["scaleTargetRef"]
            if target != {"apiVersion": "apps/v1", "kind": "Deployment", "name": "demo-visionpool"}:
                yield f"{each['kind']} scales {target}"


def _backends(each: Object) -> Iterator[tuple[str, str | int]]:
    for rule in each.get("spec", {}).get("rules", []):
        for path in rule.get("http", {}).get("paths", []):
            yield path["backend"]["service"]["name"], path["backend"]["service"]["port"]["name"]
        for backend in rule.get("backendRefs", []):
            yield backend["name"], backend["port"]


def secret(objects: list[Object], keys: list[str]) -> Iterator[str]:
    """Keys stand in Secrets, nowhere else."""
    for each in objects:
        if each["kind"] != "Secret":
            yield from (f"{each['kind']} {each['metadata']['name']} holds a key" for key in keys if key in repr(each))
