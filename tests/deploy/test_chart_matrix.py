"""For every accelerator, scaler and source of models, with and without TLS: what Helm renders is what Kubernetes takes."""

from __future__ import annotations

import copy
import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.deploy import chart_crds, chart_kserve, chart_kubernetes, chart_rules
from tests.deploy.chart_rendering import Object, container, environment, kind, merged, nested, objects, pod_spec

VERSIONS = ("1.30", "1.34", "1.36")
KEY = "alice:dont-tell-anybody"
DEVICES = {
    "cpu": ("CPU", "", []),
    "intel-gpu": ("GPU", "gpu.intel.com/i915", [44, 109, 992]),
    "nvidia": ("cuda:0", "nvidia.com/gpu", []),
}
SCALERS: dict[str, dict[str, Any]] = {
    "none": {},
    "hpa": nested("autoscaling.mode", "hpa"),
    "keda": {"autoscaling": {"mode": "keda", "keda": {"serverAddress": "http://prometheus.monitoring.svc:9090"}}},
}
SOURCES: dict[str, dict[str, Any]] = {
    "embedded": {},
    "pvc": {"pvc": {"claimName": "zoo", "subPath": "street"}},
    "hostPath": {"hostPath": {"path": "/srv/models"}},
    "initContainer": {"initContainer": {"image": "fetch:1", "command": ["fetch", "/models"]}, "sizeLimit": "10Gi"},
    "image": {"image": {"reference": "registry.example.com/models:3"}},
    "objectStore": {"objectStore": {"url": ":s3:zoo/street", "secretName": "s3"}},
}
TLS: dict[bool, dict[str, Any]] = {
    False: {},
    True: {"tls": {"enabled": True, "certManager": {"enabled": True, "issuerName": "ca"}}},
}
# All that a value can switch on besides, so that each combination is checked beside all of it.
EVERYTHING: dict[str, Any] = {
    "auth": {"keys": [KEY]},
    "cache": {"persistent": {"enabled": True}},
    "gateway": {
        "parentRefs": [{"name": "gate"}],
        "http": {"enabled": True},
        "grpc": {"enabled": True, "hostnames": ["a.example"]},
    },
    "ingress": {
        "http": {"enabled": True, "className": "nginx", "hosts": ["a.example"], "tlsSecret": "a"},
        "grpc": {"enabled": True, "hosts": ["b.example"], "annotations": {"a/b": "c"}},
    },
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True},
        "dashboard": {"enabled": True},
    },
    "networkPolicy": {"enabled": True, "from": [{"podSelector": {}}], "restrictEgress": True},
    "extraEnv": [{"name": "TZ", "value": "UTC"}],
    "preStopSleepSeconds": 5,
    "nodeSelector": {"pool": "vision"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "image": {"registry": "registry.example.com/team", "pullSecrets": ["pull"]},
}
MATRIX = list(itertools.product(DEVICES, SCALERS, SOURCES, TLS))


def values(accelerator: str, scaler: str, source: str, tls: bool) -> dict[str, Any]:
    models = {"models": {"source": source, **SOURCES[source]}}
    return merged(EVERYTHING, {"accelerator": accelerator}, SCALERS[scaler], models, TLS[tls])


@cache
def rendered(accelerator: str, scaler: str, source: str, tls: bool) -> list[Object]:
    return objects(values(accelerator, scaler, source, tls))


@cache
def _faults(document: str, version: str) -> list[str]:
    return chart_kubernetes.faults(json.loads(document), version)


@pytest.fixture(scope="module")
def crd_documents() -> list[Object]:
    """What the matrix holds of the operators' kinds, each document once."""
    found = {json.dumps(each) for combination in MATRIX for each in rendered(*combination)}
    documents = [json.loads(text) for text in sorted(found)]
    return [each for each in documents if not chart_kubernetes.is_known(each, VERSIONS[-1])]


@pytest.mark.parametrize(("accelerator", "scaler", "source", "tls"), MATRIX)
class TestEachCombination:
    def test_kubernetes_takes_it(self, accelerator: str, scaler: str, source: str, tls: bool) -> None:
        for version in VERSIONS:
            faults = []
            for each in rendered(accelerator, scaler, source, tls):
                if chart_kubernetes.is_known(each, version):
                    faults += _faults(json.dumps(each), version)
                else:
                    assert each["apiVersion"] in chart_crds.MODULES, f"nothing checks {each['kind']}"
            if source == "image" and version == "1.30":  # the chart refuses it there
                assert any("'image' was unexpected" in fault for fault in faults)
            else:
                assert faults == []

    def test_the_rules_hold(self, accelerator: str, scaler: str, source: str, tls: bool) -> None:
        found = rendered(accelerator, scaler, source, tls)
        assert [
            *chart_rules.named(found),
            *chart_rules.restricted(found, host_path=source == "hostPath"),
            *chart_rules.mounted(found),
            *chart_rules.probed(found),
            *chart_rules.patient(found),
            *chart_rules.selecting(found),
            *chart_rules.reaching(found),
            *chart_rules.secret(found, [KEY, KEY.partition(":")[2]]),
        ] == []

    def test_the_device_is_asked_for(self, accelerator: str, scaler: str, source: str, tls: bool) -> None:
        found = rendered(accelerator, scaler, source, tls)
        device, resource, groups = DEVICES[accelerator]
        server = container(found)
        assert environment(found)["VISIONPOOL_DEVICE"] == device
        assert server["image"] == f"registry.example.com/team/visionpool:0.1.0-{accelerator}"
        assert server["resources"]["limits"] == {"memory": "2Gi"} | ({resource: 1} if resource else {})
        assert pod_spec(found)["securityContext"].get("supplementalGroups", []) == groups

    def test_one_thing_counts_pods(self, accelerator: str, scaler: str, source: str, tls: bool) -> None:
        found = rendered(accelerator, scaler, source, tls)
        scalers = [each["kind"] for each in found if each["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]
        assert ("replicas" in kind(found, "Deployment")["spec"]) == (scaler == "none")
        assert scalers == {"none": [], "hpa": ["HorizontalPodAutoscaler"], "keda": ["ScaledObject"]}[scaler]

    def test_models_are_where_the_server_looks(self, accelerator: str, scaler: str, source: str, tls: bool) -> None:
        found = rendered(accelerator, scaler, source, tls)
        mounts = [each for each in container(found)["volumeMounts"] if each["name"] == "models"]
        assert environment(found).get("VISIONPOOL_MODELS") == (None if source == "embedded" else "/models")
        assert [(each["mountPath"], each["readOnly"]) for each in mounts] == [("/models", True)] * (
            source != "embedded"
        )
        fetching = pod_spec(found).get("initContainers", [])
        assert len(fetching) == (source in ("initContainer", "objectStore"))
        assert all({"name": "models", "mountPath": "/models"} in each["volumeMounts"] for each in fetching)

    def test_tls_is_the_servers_and_not_the_probes(self, accelerator: str, scaler: str, source: str, tls: bool) -> None:
        found = rendered(accelerator, scaler, source, tls)
        assert ("VISIONPOOL_TLS_CERT" in environment(found)) == ("VISIONPOOL_TLS_KEY" in environment(found)) == tls
        assert len([each for each in found if each["kind"] == "Certificate"]) == tls
        asked = {each["name"]: each["value"] for each in kind(found, "Pod")["spec"]["containers"][0]["env"]}
        scheme, secure = ("https", "grpcs") if tls else ("http", "grpc")
        assert asked["TEST_HTTP"] == f"{scheme}://demo-visionpool.vision.svc:8000"
        assert asked["TEST_GRPC"] == f"{secure}://demo-visionpool-grpc.vision.svc:8001"


def test_the_operators_take_their_resources(crd_documents: list[Object], tmp_path: Path) -> None:
    kinds = {each["kind"] for each in crd_documents}
    assert kinds == {"ScaledObject", "ServiceMonitor", "PrometheusRule", "HTTPRoute", "GRPCRoute", "Certificate"}
    assert chart_crds.faults(crd_documents, tmp_path) == []


def test_the_operators_types_refuse_what_is_wrong(crd_documents: list[Object], tmp_path: Path) -> None:
    """Each document with a field that no type has, or a value that breaks a pattern."""
    wrong = copy.deepcopy(crd_documents)
    for each in wrong:
        if each["kind"] == "ServiceMonitor":
            each["spec"]["endpoints"][0]["interval"] = "soon"
        else:
            each["spec"]["bogus"] = 1
    said = chart_crds.faults(wrong, tmp_path)
    assert {fault.partition(":")[0] for fault in said} >= {f"documents[{number}]" for number in range(len(wrong))}


def test_kubernetes_schemas_refuse_what_is_wrong() -> None:
    deployment = copy.deepcopy(kind(rendered(*MATRIX[0]), "Deployment"))
    deployment["spec"]["template"]["spec"]["containers"][0]["bogus"] = 1
    deployment["spec"]["replicas"] = "many"
    for version in VERSIONS:
        said = " ".join(chart_kubernetes.faults(deployment, version))
        assert "'bogus' was unexpected" in said
        assert "'many' is not of type" in said


KSERVE_SOURCES = {name: SOURCES[name] for name in ("embedded", "pvc", "image")} | {
    "objectStore": {"objectStore": {"url": "s3://zoo/street"}}
}
KSERVE_SCALERS: dict[str, dict[str, Any]] = {
    "none": {"replicas": 2},
    "hpa": {"autoscaling": {"mode": "hpa", "hpa": {"metric": "cpu"}}},
    "keda": {
        "autoscaling": {"mode": "keda", "keda": {"serverAddress": "http://prometheus:9090", "query": "sum(load)"}}
    },
}


@pytest.fixture(scope="module")
def kserve_types() -> dict[str, Any]:
    return chart_kserve.validators()


@pytest.mark.parametrize(
    ("accelerator", "scaler", "source"), [*itertools.product(DEVICES, KSERVE_SCALERS, KSERVE_SOURCES)]
)
def test_kserve_takes_its_resources(kserve_types: dict[str, Any], accelerator: str, scaler: str, source: str) -> None:
    models = {"models": {"source": source, **KSERVE_SOURCES[source]}}
    mode = {"accelerator": accelerator, "serving": {"mode": "kserve"}, "gateway": {"http": {"enabled": True}}}
    found = objects(merged(EVERYTHING, mode, KSERVE_SCALERS[scaler], models))
    assert {each["kind"] for each in found} == {
        *("ServiceAccount", "Secret", "PersistentVolumeClaim", "PrometheusRule", "ConfigMap", "Pod"),
        *("ServingRuntime", "InferenceService"),
    }
    runtime, service = kind(found, "ServingRuntime"), kind(found, "InferenceService")
    assert chart_kserve.faults(runtime, kserve_types["ServingRuntime"]) == []
    assert chart_kserve.faults(service, kserve_types["InferenceService"]) == []
    _check_kserve(runtime, service, source, DEVICES[accelerator][1])


def _check_kserve(runtime: Object, service: Object, source: str, resource: str) -> None:
    (server,) = runtime["spec"]["containers"]
    predictor = service["spec"]["predictor"]
    env = {each["name"]: each["value"] for each in server["env"]}
    uris = {"embedded": None, "pvc": "pvc://zoo/street", "image": "oci://registry.example.com/models:3"}
    assert server["name"] == "kserve-container"
    assert server["ports"][0]["name"] == "http"  # the one that KServe sends to
    assert (resource in server["resources"]["limits"]) == bool(resource)
    assert predictor["model"]["runtime"] == runtime["metadata"]["name"]
    assert predictor["model"].get("storageUri") == uris.get(source, "s3://zoo/street")
    assert env.get("VISIONPOOL_MODELS") == (None if source == "embedded" else "/mnt/models")
    assert predictor["terminationGracePeriodSeconds"] > 5 + 10 + 30
    assert not list(chart_rules._unrestricted(server["securityContext"]))
    assert predictor["securityContext"]["runAsNonRoot"] and not predictor["automountServiceAccountToken"]


def test_kserves_types_refuse_what_is_wrong(kserve_types: dict[str, Any]) -> None:
    found = objects({"serving": {"mode": "kserve"}})
    runtime, service = kind(found, "ServingRuntime"), kind(found, "InferenceService")
    runtime["spec"]["containers"][0]["bogus"] = 1
    service["spec"]["predictor"]["minReplicas"] = "two"
    del service["spec"]["predictor"]["model"]["modelFormat"]
    assert "bogus" in str(chart_kserve.faults(runtime, kserve_types["ServingRuntime"]))
    said = str(chart_kserve.faults(service, kserve_types["InferenceService"]))
    assert "'two' is not of type 'integer'" in said
    assert "'modelFormat' is a required property" in said
