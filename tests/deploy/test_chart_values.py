"""What values mean, and which are refused, in words that say what to do."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from visionpool_server import settings

from tests.deploy.chart_rendering import (
    CHART,
    container,
    environment,
    helm,
    kind,
    manifests,
    merged,
    nested,
    objects,
    pod_spec,
)

KSERVE = nested("serving.mode", "kserve")
KEDA: dict[str, Any] = {
    "autoscaling": {"mode": "keda", "keda": {"serverAddress": "http://prometheus:9090"}},
    "metrics": {"serviceMonitor": {"enabled": True}},
}
TLS = {"tls": {"enabled": True, "existingSecret": "certificate"}}
GOOD: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "nvidia": {"accelerator": "nvidia", "models": {"source": "pvc", "pvc": {"claimName": "zoo"}}},
    "keda": KEDA,
    "tls": TLS,
    "kserve": KSERVE,
}


@pytest.mark.parametrize("values", GOOD.values(), ids=GOOD)
@pytest.mark.parametrize("version", ["v1.30.0", "v1.34.0", "v1.36.0"])
def test_helm_lints_it_strictly(values: dict[str, Any], version: str) -> None:
    report = helm.lint(CHART, values, strict=True, kube_version=version)
    assert report["errors"] == []
    assert [each["error"] for each in report["messages"]] == ["icon is recommended"]  # there is none


def test_an_older_kubernetes_is_refused() -> None:
    with (CHART / "Chart.yaml").open() as file:
        assert yaml.safe_load(file)["kubeVersion"] == ">=1.30.0-0"


def test_it_is_of_the_projects_version() -> None:
    with (CHART / "Chart.yaml").open() as file:
        about = yaml.safe_load(file)
    project = tomllib.loads((CHART.parents[1] / "pyproject.toml").read_text())["project"]
    assert about["appVersion"] == project["version"]
    images = yaml.safe_load(about["annotations"]["artifacthub.io/images"])
    assert [each["image"] for each in images] == [
        f"visionpool:{project['version']}-{accelerator}" for accelerator in ("cpu", "intel-gpu", "nvidia")
    ]


def test_a_package_of_it_renders_the_same(tmp_path: Path) -> None:
    packed = helm.package(CHART, destination=tmp_path)
    with helm.Chart.load(packed) as chart:
        assert chart.render(KEDA, name="demo", namespace="vision") == manifests(KEDA)
        assert "files/dashboard.json" in {each["name"] for each in chart.files}


def test_it_can_be_a_part_of_another_chart(tmp_path: Path) -> None:
    """Helm gives such a chart a key `global` besides its own values."""
    whole = {"apiVersion": "v2", "name": "whole", "version": "1.0.0"}
    (tmp_path / "whole/charts").mkdir(parents=True)
    (tmp_path / "whole/Chart.yaml").write_text(yaml.safe_dump(whole))
    shutil.copytree(CHART, tmp_path / "whole/charts/visionpool")
    with helm.Chart.load(tmp_path / "whole") as chart:
        rendered = chart.render({"global": {"a": 1}, "visionpool": {"replicas": 3}}, name="demo", namespace="vision")
    assert "replicas: 3" in rendered["whole/charts/visionpool/templates/deployment.yaml"]


BAD = [
    ("accelerator", "tpu", "at '/accelerator': value must be one of 'cpu', 'intel-gpu', 'nvidia'"),
    ("gpus", 0, "at '/gpus': minimum: got 0, want 1"),
    ("modles.source", "pvc", "additional properties 'modles' not allowed"),
    ("models.source", "ftp", "at '/models/source': value must be one of 'embedded', 'pvc'"),
    ("models.source", "pvc", "models.source is pvc: set models.pvc.claimName"),
    ("models.source", "hostPath", "models.source is hostPath: set models.hostPath.path"),
    ("models.source", "initContainer", "models.source is initContainer: set models.initContainer.image"),
    ("models.source", "image", "models.source is image: set models.image.reference"),
    ("models.source", "objectStore", "models.source is objectStore: set models.objectStore.url"),
    ("server.wrokers", 2, "at '/server': additional properties 'wrokers' not allowed"),
    ("server.workers", 0, "at '/server/workers': minimum: got 0, want 1"),
    ("server.drainDelay", -1, "at '/server/drainDelay': minimum: got -1, want 0"),
    ("server.precision", "fp16", "at '/server/precision': value must be one of '', 'f32', 'f16', 'bf16', 'int8'"),
    ("server.allowUrls", ["img.example.com"], "at '/server/allowUrls/0': 'img.example.com' does not match"),
    ("image.digest", "latest", "at '/image/digest': 'latest' does not match pattern '^(sha256:[0-9a-f]{64})?$'"),
    ("image.registry", "https://registry.example.com", "at '/image/registry': 'https://registry.example.com' does not"),
    ("replicas", "two", "at '/replicas': got string, want integer"),
    ("autoscaling.minReplicas", 0, "at '/autoscaling/minReplicas': minimum: got 0, want 1"),
    ("autoscaling", {"mode": "hpa", "minReplicas": 9}, "minReplicas (9) is above autoscaling.maxReplicas (4)"),
    ("autoscaling.mode", "keda", "set autoscaling.keda.serverAddress to the Prometheus that scrapes visionpool"),
    ("autoscaling", KEDA["autoscaling"], "Set metrics.serviceMonitor.enabled, or write autoscaling.keda.query"),
    ("tls.enabled", True, "tls.enabled needs a certificate: set tls.existingSecret, or tls.certManager.enabled"),
    ("tls", {"enabled": True, "certManager": {"enabled": True}}, "set tls.certManager.issuerName"),
    ("tls.clientCertificates", True, "tls.clientCertificates needs tls.enabled"),
    ("auth", {"keys": ["k"], "existingSecret": "s"}, "auth.keys and auth.existingSecret are both set: leave out one"),
    ("gateway.http.enabled", True, "a route belongs to a Gateway: set gateway.parentRefs"),
    ("ingress.grpc.enabled", True, "ingress.grpc.enabled: set ingress.grpc.hosts"),
    ("service.httpPort", 70000, "at '/service/httpPort': maximum: got 70,000, want 65,535"),
    ("cache.sizeLimit", "4 GB", "at '/cache/sizeLimit': '4 GB' does not match pattern"),
    ("pdb.maxUnavailable", "half", "at '/pdb/maxUnavailable': 'half' does not match pattern '^[0-9]+%$'"),
    ("probes.startup.periods", 1, "at '/probes/startup': additional properties 'periods' not allowed"),
    ("extraEnv", [{"nam": "X"}], "at '/extraEnv/0': missing property 'name'"),
    ("extraEnv", [{"name": "VISIONPOOL_LOG_LEVEL", "value": "debug"}], "the chart sets VISIONPOOL_LOG_LEVEL itself"),
    ("serving.mode", "knative", "at '/serving/mode': value must be one of 'deployment', 'kserve'"),
]
BAD_FOR_KSERVE = [
    ("tls", TLS["tls"], "which talks plain HTTP to pods: end TLS at its gateway, and set tls.enabled to false"),
    ("models", {"source": "hostPath", "hostPath": {"path": "/m"}}, "embedded, pvc, image or objectStore, not hostPath"),
    (
        "models",
        {"source": "objectStore", "objectStore": {"url": ":s3:b"}},
        "one that KServe reads, such as s3://bucket",
    ),
    ("models.objectStore.secretName", "zoo", "leave out models.objectStore.secretName"),
    ("autoscaling.mode", "hpa", "set autoscaling.hpa.metric to cpu, or autoscaling.mode to keda"),
    ("autoscaling", KEDA["autoscaling"], "write autoscaling.keda.query"),
]


@pytest.mark.parametrize(("path", "value", "told"), BAD)
def test_a_bad_value_is_refused(path: str, value: object, told: str) -> None:
    with pytest.raises(helm.HelmError) as refused:
        manifests(nested(path, value))
    assert told in str(refused.value)


@pytest.mark.parametrize(("path", "value", "told"), BAD_FOR_KSERVE)
def test_what_kserve_cannot_is_refused(path: str, value: object, told: str) -> None:
    monitored = {"metrics": KEDA["metrics"]}
    with pytest.raises(helm.HelmError) as refused:
        manifests(merged(KSERVE, monitored, nested(path, value)))
    assert told in str(refused.value)


@pytest.mark.parametrize(("version", "taken"), [("v1.30.7", False), ("v1.31.0", True), ("v1.34.2-eks-1", True)])
def test_image_volumes_need_a_kubernetes_that_has_them(tmp_path: Path, version: str, taken: bool) -> None:
    """Helm's code for Python renders for one version only: the chart asks for another by a word of its own here."""
    shutil.copytree(CHART, tmp_path / "visionpool")
    checks = tmp_path / "visionpool/templates/_checks.tpl"
    checks.write_text(checks.read_text().replace("$.Capabilities.KubeVersion.Version", f'"{version}"'))
    values = {"models": {"source": "image", "image": {"reference": "models:1"}}}
    with helm.Chart.load(tmp_path / "visionpool") as chart:
        if taken:
            assert 'reference: "models:1"' in chart.render(values, name="demo")["visionpool/templates/deployment.yaml"]
        else:
            with pytest.raises(helm.HelmError, match=f"Kubernetes {version} has no image volumes"):
                chart.render(values, name="demo")


def _open(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Paths of mappings that take any key."""
    if schema.get("type") == "object" and schema.get("additionalProperties") is not False:
        yield path.strip("/")
    for name, inner in schema.get("properties", {}).items():
        yield from _open(inner, f"{path}/{name}")
    if isinstance(schema.get("items"), dict):
        yield from _open(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from _open(schema["additionalProperties"], f"{path}/*")


def test_the_schema_is_closed_but_for_what_kubernetes_defines() -> None:
    """Free are maps of words (labels and the like), and objects that are Kubernetes' own."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    kubernetes = {
        *("affinity", "strategy", "podSecurityContext", "containerSecurityContext", "autoscaling/behavior", "global"),
        *("tolerations[]", "extraVolumes[]", "extraVolumeMounts[]", "extraEnvFrom[]", "extraEnv[]/valueFrom"),
        *("gateway/parentRefs[]", "networkPolicy/from[]", "networkPolicy/metricsFrom[]", "networkPolicy/egress[]"),
        *(
            "models/initContainer/envFrom[]",
            "models/initContainer/env[]/valueFrom",
            "models/objectStore/env[]/valueFrom",
        ),
        *("resources/claims[]", "models/fetchResources/claims[]"),
    }
    words = {"podAnnotations", "podLabels", "nodeSelector", "autoscaling/keda/metadata"}
    ends = ("annotations", "labels", "requests", "limits")
    assert {path for path in _open(schema) if path not in words and not path.endswith(ends)} == kubernetes


def test_every_value_is_in_the_schema_and_the_other_way_round() -> None:
    def both(values: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
        known = schema.get("properties", {})
        for key in {*known} ^ {*values} - ({"global"} if not path else set()) if known else ():
            yield f"{path}.{key}"
        for key, value in values.items() if known else ():
            if isinstance(value, dict):
                yield from both(value, known.get(key, {}), f"{path}.{key}")

    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    optional = {".global", ".resources.claims", ".models.fetchResources.claims"}
    probes = {
        f".probes.{probe}.{key}" for probe in values["probes"] for key in ("initialDelaySeconds", "successThreshold")
    }
    assert set(both(values, schema, "")) == optional | probes


def test_each_key_of_server_is_a_flag() -> None:
    flags = {
        each.envvar for name in vars(settings) if name.endswith("Flag") for each in getattr(settings, name).__metadata__
    }
    said = yaml.safe_load((CHART / "values.yaml").read_text())["server"]
    chosen: dict[str, Any] = {
        "workers": 3,
        "accessLog": False,
        "maxBodyMb": 128,
        "maxPixels": 100_000_000,
        "bodyTimeout": 0.5,
    }
    chosen |= {
        "allowUrls": ["https://a/", "https://b/"],
        "loadModel": ["street", "shelf"],
        "modelControlMode": "explicit",
    }
    chosen |= {"backend": "openvino", "precision": "f16"}
    env = environment(objects({"server": chosen}))
    ours = {name for name in env if name.startswith("VISIONPOOL_")}
    assert ours <= flags
    assert len(ours) == len(said) + 3  # the three ports
    assert env["VISIONPOOL_MAX_PIXELS"] == "100000000"  # not 1e+08
    assert env["VISIONPOOL_BODY_TIMEOUT"] == "0.5"
    assert env["VISIONPOOL_ACCESS_LOG"] == "false"
    assert env["VISIONPOOL_ALLOW_URLS"] == "https://a/ https://b/"
    assert env["VISIONPOOL_LOAD_MODEL"] == "street shelf"


def test_what_is_unset_is_left_to_the_server() -> None:
    env = environment(objects({}))
    assert not {"VISIONPOOL_WORKERS", "VISIONPOOL_BACKEND", "VISIONPOOL_ALLOW_URLS", "VISIONPOOL_ACCESS_LOG"} & set(env)


def test_a_device_can_be_told_apart_from_the_preset() -> None:
    values = {"accelerator": "intel-gpu", "gpus": 2, "server": {"device": "GPU.1"}}
    preset = nested("accelerators.intel-gpu", {"resource": "gpu.intel.com/xe", "supplementalGroups": [990]})
    found = objects(merged(values, preset))
    assert environment(found)["VISIONPOOL_DEVICE"] == "GPU.1"
    assert container(found)["resources"]["limits"]["gpu.intel.com/xe"] == 2
    assert pod_spec(found)["securityContext"]["supplementalGroups"] == [990]


def test_groups_of_ones_own_come_besides() -> None:
    values = {"accelerator": "intel-gpu", "podSecurityContext": {"supplementalGroups": [1234]}}
    assert pod_spec(objects(values))["securityContext"]["supplementalGroups"] == [1234, 44, 109, 992]


@pytest.mark.parametrize(
    ("image", "reference"),
    [
        ({}, "visionpool:0.1.0-cpu"),
        ({"registry": "r.example:5000/team/"}, "r.example:5000/team/visionpool:0.1.0-cpu"),
        ({"repository": "ours/vp", "tag": "1"}, "ours/vp:1"),
        ({"digest": f"sha256:{'a' * 64}", "tag": "1"}, f"visionpool@sha256:{'a' * 64}"),
    ],
)
def test_the_image_is_the_one_that_was_said(image: dict[str, str], reference: str) -> None:
    found = objects({"image": image})
    assert container(found)["image"] == reference
    assert kind(found, "Pod")["spec"]["containers"][0]["image"] == reference


@pytest.mark.parametrize(
    ("release", "names", "called"),
    [
        ("demo", {}, "demo-visionpool"),
        ("visionpool", {}, "visionpool"),
        ("demo", {"nameOverride": "eyes"}, "demo-eyes"),
        ("demo", {"fullnameOverride": "eyes"}, "eyes"),
        ("r" * 53, {}, "r" * 50),
    ],
)
def test_objects_are_called_after_the_release(release: str, names: dict[str, str], called: str) -> None:
    found = objects(names, release)
    assert kind(found, "Deployment")["metadata"]["name"] == called
    assert {each["metadata"]["name"] for each in found if each["kind"] == "Service"} == {called, f"{called}-grpc"}


def test_pods_are_given_the_time_that_draining_takes() -> None:
    values = {"server": {"drainDelay": 20.5, "gracePeriod": 60}, "preStopSleepSeconds": 7}
    found = objects(values)
    assert pod_spec(found)["terminationGracePeriodSeconds"] == 7 + 21 + 60 + 10
    assert container(found)["lifecycle"] == {"preStop": {"sleep": {"seconds": 7}}}
    assert "lifecycle" not in container(objects({}))


def test_a_rollout_has_the_time_that_models_may_take() -> None:
    slow = {"probes": {"startup": {"periodSeconds": 10, "failureThreshold": 360, "initialDelaySeconds": 60}}}
    assert kind(objects(slow), "Deployment")["spec"]["progressDeadlineSeconds"] == 60 + 10 * 360 + 300


def test_a_strategy_without_a_rolling_update_has_none_of_its_settings() -> None:
    """Kubernetes refuses them, and Helm would join the chart's own with what was said."""
    values = nested("strategy.type", "Recreate")
    assert kind(objects(values), "Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    predictor = kind(objects(merged(KSERVE, values)), "InferenceService")["spec"]["predictor"]
    assert predictor["deploymentStrategy"] == {"type": "Recreate"}


@pytest.mark.parametrize("reached", ["NodePort", "LoadBalancer"])
def test_metrics_ask_for_no_key_and_stay_inside_the_cluster(reached: str) -> None:
    found = objects(merged(KEDA, nested("service.type", reached)))
    outside, inside = (kind(found, "Service", name)["spec"] for name in ("visionpool", "-grpc"))
    assert (outside["type"], inside["clusterIP"]) == (reached, "None")
    assert [port["name"] for port in outside["ports"]] == ["http", "grpc"]
    assert [port["name"] for port in inside["ports"]] == ["grpc", "metrics"]
    (trigger,) = kind(found, "ScaledObject")["spec"]["triggers"]
    assert trigger["metadata"]["query"].count('service="demo-visionpool-grpc"') == 3


def test_keda_asks_for_the_load_of_these_pods_and_has_a_way_out() -> None:
    scaled = kind(objects(KEDA), "ScaledObject")["spec"]
    (trigger,) = scaled["triggers"]
    of = '{namespace="vision",service="demo-visionpool"}'
    assert trigger["metricType"] == "AverageValue"
    assert trigger["metadata"] == {
        "serverAddress": "http://prometheus:9090",
        "query": f"sum((avg_over_time(visionpool_slots_used{of}[1m]) + avg_over_time(visionpool_queue_length{of}[1m])) "
        f"/ (visionpool_slots{of} > 0))",
        "threshold": "0.8",
        "ignoreNullValues": "false",
    }
    assert scaled["fallback"] == {"failureThreshold": 3, "replicas": 4}
    assert scaled["minReplicaCount"] == 1


def test_the_load_or_the_cpu_moves_an_hpa() -> None:
    (load,) = kind(objects(nested("autoscaling.mode", "hpa")), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert load["pods"] == {
        "metric": {"name": "visionpool_load"},
        "target": {"type": "AverageValue", "averageValue": "0.8"},
    }
    cpu = {"autoscaling": {"mode": "hpa", "hpa": {"metric": "cpu"}}}
    (busy,) = kind(objects(cpu), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert busy["resource"] == {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 75}}


def test_secrets_are_mounted_as_folders_so_that_new_ones_arrive() -> None:
    found = objects(merged(TLS, {"auth": {"existingSecret": "callers"}, "tls": {"clientCertificates": True}}))
    mounts = {each["name"]: each for each in container(found)["volumeMounts"]}
    volumes = {each["name"]: each for each in pod_spec(found)["volumes"]}
    assert [volumes[name]["secret"]["secretName"] for name in ("api-keys", "tls")] == ["callers", "certificate"]
    assert all("subPath" not in mounts[name] and mounts[name]["readOnly"] for name in ("api-keys", "tls"))
    env = environment(found)
    assert env["VISIONPOOL_API_KEYS"] == "/run/secrets/visionpool/api-keys"
    assert env["VISIONPOOL_TLS_CLIENT_CA"] == "/run/secrets/visionpool-tls/ca.crt"
    assert not [each for each in found if each["kind"] == "Secret"]


def test_the_test_sees_no_private_key_of_the_server() -> None:
    pod = kind(objects(TLS), "Pod")["spec"]
    (tls,) = [each for each in pod["volumes"] if each["name"] == "tls"]
    assert tls["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]


def test_there_is_no_test_without_the_certificate_that_it_would_need() -> None:
    strict = merged(TLS, nested("tls.clientCertificates", True))
    assert not [each for each in objects(strict) if each["kind"] == "Pod"]
    pod = kind(objects(merged(strict, nested("test.clientTlsSecret", "tester"))), "Pod")["spec"]
    assert {"name": "TEST_CLIENT_TLS", "value": "/run/secrets/client-tls"} in pod["containers"][0]["env"]


def test_the_certificate_names_what_clients_call() -> None:
    values = {"tls": {"enabled": True, "certManager": {"enabled": True, "issuerName": "ca", "dnsNames": ["v.example"]}}}
    names = kind(objects(values), "Certificate")["spec"]["dnsNames"]
    assert {"demo-visionpool.vision.svc", "demo-visionpool-grpc.vision.svc", "v.example"} < set(names)


def test_ones_own_additions_are_in_the_pod() -> None:
    found = objects(
        {
            "extraArgs": ["--trace-dir", "/traces"],
            "extraEnvFrom": [{"secretRef": {"name": "s3"}}],
            "extraVolumes": [{"name": "traces", "emptyDir": {}}],
            "extraVolumeMounts": [{"name": "traces", "mountPath": "/traces"}],
            "podAnnotations": {"a/b": "c"},
            "podLabels": {"team": "eyes"},
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "high",
            "runtimeClassName": "nvidia",
        }
    )
    server, spec = container(found), pod_spec(found)
    assert server["args"] == ["serve", "--trace-dir", "/traces"]
    assert server["envFrom"] == [{"secretRef": {"name": "s3"}}]
    assert {"name": "traces", "mountPath": "/traces"} in server["volumeMounts"]
    assert {"name": "traces", "emptyDir": {}} in spec["volumes"]
    metadata = kind(found, "Deployment")["spec"]["template"]["metadata"]
    assert (metadata["annotations"]["a/b"], metadata["labels"]["team"]) == ("c", "eyes")
    assert (spec["priorityClassName"], spec["runtimeClassName"]) == ("high", "nvidia")
    assert spec["affinity"] == {"nodeAffinity": {}}


@pytest.mark.parametrize(
    ("cache", "volume"),
    [
        ({}, {"emptyDir": {"sizeLimit": "4Gi"}}),
        ({"existingClaim": "warm"}, {"persistentVolumeClaim": {"claimName": "warm"}}),
        ({"persistent": {"enabled": True}}, {"persistentVolumeClaim": {"claimName": "demo-visionpool-cache"}}),
    ],
)
def test_the_cache_is_a_volume(cache: dict[str, Any], volume: dict[str, Any]) -> None:
    found = objects({"cache": cache})
    assert {"name": "cache", **volume} in pod_spec(found)["volumes"]
    assert len([each for each in found if each["kind"] == "PersistentVolumeClaim"]) == ("persistent" in cache)


def test_the_dashboard_and_the_rules_are_the_files() -> None:
    found = objects({"metrics": {"prometheusRule": {"enabled": True}, "dashboard": {"enabled": True}}})
    shipped = json.loads((CHART / "files/dashboard.json").read_text())
    config = kind(found, "ConfigMap")
    assert json.loads(config["data"]["visionpool.json"]) == shipped
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    rules = yaml.safe_load((CHART / "files/rules.yaml").read_text())
    assert kind(found, "PrometheusRule")["spec"] == rules


def test_the_network_policy_lets_in_what_was_said() -> None:
    peer = [{"podSelector": {"matchLabels": {"app": "web"}}}]
    policy = {
        "enabled": True,
        "from": peer,
        "restrictEgress": True,
        "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
    }
    spec = kind(objects({"networkPolicy": policy}), "NetworkPolicy")["spec"]
    asking, scraping = spec["ingress"]
    assert asking["from"][0] == peer[0]
    assert asking["from"][1]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "test"
    assert [each["port"] for each in asking["ports"] + scraping["ports"]] == ["http", "grpc", "metrics"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["egress"][1] == {"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}
    everybody = kind(objects(nested("networkPolicy.enabled", True)), "NetworkPolicy")["spec"]
    assert "from" not in everybody["ingress"][0]
    assert everybody["policyTypes"] == ["Ingress"]


NOTES = [
    ({}, "curl http://127.0.0.1:8000/v1/models", "tls"),
    ({}, "anybody who reaches the ports may ask", "kserve"),
    (TLS, "curl -k https://127.0.0.1:8000/v1/models", "http://127.0.0.1"),
    ({"auth": {"existingSecret": "k"}}, 'curl -H "X-API-Key: $KEY"', "anybody"),
    ({"auth": {"keys": ["k"]}}, "are kept in the release's values", "anybody"),
    (KSERVE, "kubectl -n vision wait --for=condition=Ready inferenceservice/demo-visionpool", "port-forward"),
    (merged(TLS, nested("tls.clientCertificates", True)), "There is no `helm test`", "One inference"),
    (nested("ingress.http", {"enabled": True, "hosts": ["v.example"]}), "Outside (http): v.example", "(grpc)"),
    (nested("autoscaling.mode", "hpa"), "waits for the metric visionpool_load", "hostPath"),
    (nested("models", {"source": "hostPath", "hostPath": {"path": "/m"}}), "forbid hostPath volumes", "hpa"),
]


@pytest.mark.parametrize(("values", "told", "not_told"), NOTES)
def test_notes_say_what_to_do_next(values: dict[str, Any], told: str, not_told: str) -> None:
    notes = manifests(values)["visionpool/templates/NOTES.txt"]
    assert told in notes
    assert not_told not in notes
