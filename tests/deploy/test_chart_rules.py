"""The rules that the matrix is held against see what breaks them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.deploy import chart_rules
from tests.deploy.chart_rendering import Object, container, kind, objects, pod_spec

VALUES: dict[str, Any] = {
    "metrics": {"serviceMonitor": {"enabled": True}},
    "ingress": {"http": {"enabled": True, "hosts": ["a.example"]}},
    "autoscaling": {"mode": "hpa"},
}
Break = Callable[[list[Object]], Any]
BREAKS: list[tuple[Callable[[list[Object]], Any], Break]] = [
    (chart_rules.named, lambda found: found.append(found[0])),
    (chart_rules.named, lambda found: found[0]["metadata"]["labels"].pop("helm.sh/chart")),
    (
        partial(chart_rules.restricted, host_path=False),
        lambda found: pod_spec(found).update(automountServiceAccountToken=True),
    ),
    (
        partial(chart_rules.restricted, host_path=False),
        lambda found: pod_spec(found)["securityContext"].update(runAsUser=0),
    ),
    (
        partial(chart_rules.restricted, host_path=False),
        lambda found: container(found)["securityContext"].update(capabilities={"add": ["SYS_ADMIN"]}),
    ),
    (
        partial(chart_rules.restricted, host_path=False),
        lambda found: pod_spec(found)["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
    ),
    (
        partial(chart_rules.restricted, host_path=False),
        lambda found: kind(found, "Pod")["spec"]["containers"][0]["securityContext"].pop("readOnlyRootFilesystem"),
    ),
    (chart_rules.mounted, lambda found: container(found)["volumeMounts"].pop()),
    (chart_rules.mounted, lambda found: container(found)["volumeMounts"][1].update(mountPath="/tmp")),
    (chart_rules.probed, lambda found: container(found)["livenessProbe"]["httpGet"].update(port="http")),
    (chart_rules.probed, lambda found: container(found)["readinessProbe"]["httpGet"].update(path="/health/live")),
    (chart_rules.patient, lambda found: pod_spec(found).update(terminationGracePeriodSeconds=40)),
    (chart_rules.selecting, lambda found: kind(found, "Service", "-grpc")["spec"]["selector"].update(a="b")),
    (
        chart_rules.selecting,
        lambda found: kind(found, "Service", "-grpc")["spec"]["selector"].pop("app.kubernetes.io/component"),
    ),
    (chart_rules.selecting, lambda found: kind(found, "Service", "-grpc")["spec"]["ports"][0].update(targetPort="rpc")),
    (chart_rules.selecting, lambda found: kind(found, "Service", "-grpc")["spec"]["ports"][0].update(name="metrics")),
    (chart_rules.reaching, lambda found: kind(found, "Service", "pool")["spec"]["ports"].pop(0)),
    (
        chart_rules.reaching,
        lambda found: kind(found, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"].update(name="x"),
    ),
    (
        partial(chart_rules.secret, keys=["hush"]),
        lambda found: container(found)["env"].append({"name": "KEY", "value": "hush"}),
    ),
]


@pytest.mark.parametrize(("rule", "spoil"), BREAKS)
def test_a_rule_sees_what_breaks_it(rule: Callable[[list[Object]], Any], spoil: Break) -> None:
    found = copy.deepcopy(objects(VALUES))
    assert list(rule(found)) == []
    spoil(found)
    assert list(rule(found))
