"""The Kubernetes manifests, as kubectl builds them: valid by Kubernetes's schemas, as closed as they say."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from trainvitals import rundir

from tests.conftest import newer_tool, tool

REPOSITORY = Path(__file__).parents[1]
MANIFESTS = REPOSITORY / "deploy" / "kubernetes"
# 1.30 is the oldest with what is used here: sidecars, and the preStop action `sleep`.
VERSIONS = ("1.30", "1.33", "1.36")
BUILDS = (".", "base", "dashboards", "without-operator", "examples/one-node", "examples/nodes", "examples/sidecar")
COMPONENTS = ("gpu-operator", "kube-prometheus", "process-details")
CUSTOM = {("monitoring.coreos.com/v1", "PodMonitor"), ("monitoring.coreos.com/v1", "PrometheusRule")}
WRITABLE = "/run/trainvitals-runs"
# What kubectl leaves a client-side `apply` for its copy in an annotation; a ConfigMap may have a mebibyte.
MOST_BYTES = {"ConfigMap": 2**18, "PrometheusRule": 2**18}
each_build = pytest.mark.parametrize("build", BUILDS)

Resource = dict[str, Any]


@functools.cache
def kustomized(folder: Path) -> str:
    done = subprocess.run([newer_tool("kubectl"), "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "kustomize warns of what it will no longer take"
    return done.stdout


def resources(folder: Path) -> list[Resource]:
    return list(yaml.safe_load_all(kustomized(folder)))


def only(found: list[Resource], kind: str) -> Resource:
    (resource,) = [resource for resource in found if resource["kind"] == kind]
    return resource


def pods(found: list[Resource]) -> Iterator[Resource]:
    """The specification of each pod that these resources make."""
    for resource in found:
        if resource["kind"] in ("DaemonSet", "Job"):
            yield resource["spec"]["template"]["spec"]


def containers(pod: Resource) -> list[Resource]:
    return [*pod.get("initContainers", []), *pod["containers"]]


@pytest.fixture
def with_components(tmp_path: Path) -> list[Resource]:
    """The exporter with all components that change it."""
    shutil.copytree(MANIFESTS, tmp_path / "kubernetes")
    everything = {"resources": ["../base"], "components": [f"../components/{name}" for name in COMPONENTS]}
    folder = tmp_path / "kubernetes" / "everything"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(yaml.safe_dump({"namespace": "trainvitals", **everything}))
    return resources(folder)


@pytest.mark.parametrize("version", VERSIONS)
def test_resources_are_valid(version: str, with_components: list[Resource]) -> None:
    checked = set()
    for resource in [*with_components, *(r for build in BUILDS for r in resources(MANIFESTS / build))]:
        if (resource["apiVersion"], resource["kind"]) not in CUSTOM:
            kubernetes_validate.validate(resource, version, strict=True)
            checked.add(resource["kind"])
    assert checked == {
        "ConfigMap", "DaemonSet", "Job", "Namespace", "NetworkPolicy", "Role", "RoleBinding", "Service",
        "ServiceAccount",
    }  # fmt: skip


def test_the_validation_sees_what_is_wrong() -> None:
    job = only(resources(MANIFESTS / "examples/one-node"), "Job")
    job["spec"]["template"]["spec"]["containers"][0]["enviroment"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[-1], strict=True)


@each_build
def test_everything_is_in_one_namespace_and_nothing_is_there_twice(build: str) -> None:
    found = resources(MANIFESTS / build)
    names = [(resource["kind"], resource["metadata"]["name"]) for resource in found]
    assert len(set(names)) == len(names)
    namespaces = {r["metadata"].get("namespace") for r in found if r["kind"] != "Namespace"}
    assert namespaces in ({"trainvitals"}, {"speech"})


@each_build
def test_nothing_is_secret_and_nobody_talks_to_the_api_server(build: str) -> None:
    found = resources(MANIFESTS / build)
    assert {"Secret", "ClusterRole", "ClusterRoleBinding"}.isdisjoint(resource["kind"] for resource in found)
    for resource in found:
        if resource["kind"] == "ServiceAccount":
            assert resource["automountServiceAccountToken"] is False
    for pod in pods(found):
        assert pod["automountServiceAccountToken"] is False
        assert not any("secret" in volume or "projected" in volume for volume in pod["volumes"])


@each_build
def test_containers_have_no_more_rights_than_they_need(build: str) -> None:
    for pod in pods(resources(MANIFESTS / build)):
        assert not pod.get("hostNetwork")
        assert not pod.get("hostIPC")
        for container in containers(pod):
            context = {**pod["securityContext"], **container["securityContext"]}
            assert "privileged" not in context
            assert context["allowPrivilegeEscalation"] is False
            assert context["seccompProfile"] == {"type": "RuntimeDefault"}
            assert context["capabilities"]["drop"] == ["ALL"]
            added = context["capabilities"].get("add", [])
            assert added == (["DAC_READ_SEARCH"] if container["name"] == "exporter" else []), container["name"]
            if container["image"].startswith("trainvitals-exporter"):
                assert context["readOnlyRootFilesystem"] is True
            assert context.get("runAsNonRoot") is True or context["runAsUser"] == 0
            assert container["resources"]["limits"]["memory"]


def test_the_exporter_can_change_nothing_on_the_node() -> None:
    pod = next(pods(resources(MANIFESTS)))
    on_host = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"]}
    for container in containers(pod):
        writable = [on_host[mount["name"]] for mount in container["volumeMounts"] if not mount.get("readOnly")]
        assert writable == ([WRITABLE] if container["name"] == "run-directory" else []), container["name"]
    assert "/" not in on_host.values()


def test_process_details_add_one_capability(with_components: list[Resource]) -> None:
    (container,) = next(pods(with_components))["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["DAC_READ_SEARCH", "SYS_PTRACE"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False


@each_build
def test_images_are_pinned(build: str) -> None:
    images = {container["image"] for pod in pods(resources(MANIFESTS / build)) for container in containers(pod)}
    (pinned,) = {s["image"] for s in yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"].values()
                 if "trainvitals" in s["image"]}  # fmt: skip
    assert images <= {pinned, "registry.example/finetune:1.0.0"}


def test_a_user_can_name_another_image(tmp_path: Path) -> None:
    shutil.copytree(MANIFESTS, tmp_path / "kubernetes")
    own = tmp_path / "own"
    own.mkdir()
    images = [{"name": "trainvitals-exporter", "newName": "registry.example/exporter", "newTag": "2.0.0"}]
    (own / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["../kubernetes"], "images": images}))
    pod = next(pods(resources(own)))
    assert {container["image"] for container in containers(pod)} == {"registry.example/exporter:2.0.0"}


def test_the_exporter_takes_the_arguments(tmp_path: Path) -> None:
    built = [pod for build in (".", "examples/sidecar") for pod in pods(resources(MANIFESTS / build))]
    exporters = [container for pod in built for container in containers(pod) if "--listen" in container.get("args", [])]
    assert len(exporters) == 2
    for container in exporters:
        (port,) = container["ports"]
        assert container["args"][:2] == ["--listen", f"0.0.0.0:{port['containerPort']}"]
        arguments = [argument.replace("/host", "/") for argument in container["args"]]
        command = [sys.executable, "-m", "trainvitals_exporter", *arguments, "--once", str(tmp_path / "x.prom")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert port["name"] == container["livenessProbe"]["httpGet"]["port"]
        assert container["livenessProbe"]["httpGet"]["path"] == "/-/healthy"


def test_exporters_look_where_the_jobs_write(tmp_path: Path) -> None:
    """With the folders of the manifests made below a folder of the test's."""
    for build in ("examples/one-node", "examples/nodes", "examples/sidecar"):
        (pod,) = pods(resources(MANIFESTS / build))
        (train,) = pod["containers"]
        environment = {variable["name"]: variable.get("value") for variable in train["env"]}
        run_dir = Path(environment[rundir.ENVIRONMENT].replace("$(POD_NAMESPACE)", build.replace("/", "-")))
        assert train["command"][:2] == ["trainvitals", "run"]
        assert str(run_dir.parent) == WRITABLE
        assert run_dir.name.endswith(f"-{pod['securityContext']['runAsUser']}"), "a folder belongs to one user"
        inside = tmp_path / run_dir.relative_to("/")
        rundir.prepare(inside)
        assert inside in rundir.everyone(tmp_path)
        assert WRITABLE in {mount["mountPath"] for mount in train["volumeMounts"]}
    (exporter,) = next(pods(resources(MANIFESTS)))["containers"]
    root = exporter["args"][exporter["args"].index("--rootfs") + 1]
    assert root + WRITABLE in {mount["mountPath"] for mount in exporter["volumeMounts"]}


def test_the_sidecar_needs_no_rights_on_the_node() -> None:
    (pod,) = pods(resources(MANIFESTS / "examples/sidecar"))
    assert not any("hostPath" in volume for volume in pod["volumes"]), "which the level `restricted` forbids"
    assert "hostPID" not in pod
    assert pod["shareProcessNamespace"] is True
    assert pod["securityContext"]["runAsNonRoot"] is True
    (sidecar,) = pod["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert "runAsUser" not in sidecar["securityContext"], "it has to be the user who trains, to read the run files"


@pytest.mark.parametrize("build", [".", "examples/sidecar"])
def test_pods_are_found_by_the_monitor(build: str) -> None:
    found = resources(MANIFESTS / build)
    monitor = only(found, "PodMonitor")
    assert monitor["metadata"]["name"] == "trainvitals", "the rules know the exporter by its job"
    template = next(r["spec"]["template"] for r in found if r["kind"] in ("DaemonSet", "Job"))
    assert monitor["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {p["name"] for c in containers(template["spec"]) for p in c.get("ports", [])}
    assert {"instance"} == {r["targetLabel"] for r in endpoint["relabelings"] if "targetLabel" in r}


def test_policy_and_probes_are_about_the_exporters_pods() -> None:
    found = resources(MANIFESTS)
    policy, daemons = only(found, "NetworkPolicy")["spec"], only(found, "DaemonSet")["spec"]
    labels = daemons["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert daemons["selector"]["matchLabels"].items() <= labels.items()
    assert "egress" not in policy, "nothing may be connected to"
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [rule["ports"] for rule in policy["ingress"]] == [[{"port": "metrics"}]]


def test_each_dashboard_is_a_config_map_that_grafanas_sidecar_takes() -> None:
    sources = {f.name: json.loads(f.read_text()) for f in (REPOSITORY / "grafana" / "dashboards").glob("*.json")}
    maps = [r for r in resources(MANIFESTS) if r["kind"] == "ConfigMap"]
    assert all(r["metadata"]["labels"]["grafana_dashboard"] == "1" for r in maps)
    files = {name: text for r in maps for name, text in r["data"].items()}
    built = {name.removeprefix("trainvitals-"): json.loads(text) for name, text in files.items()}
    assert built == sources, "run `make kubernetes`"


@each_build
def test_resources_fit_into_the_clusters_store(build: str) -> None:
    for resource in resources(MANIFESTS / build):
        most = MOST_BYTES.get(resource["kind"], 2**14)
        assert len(json.dumps(resource).encode()) < most, resource["metadata"]["name"]


def test_generated_files_are_up_to_date(tmp_path: Path) -> None:
    for folder in ("prometheus/rules", "grafana/dashboards", "deploy/kubernetes"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder)
    subprocess.run([sys.executable, tmp_path / "deploy/kubernetes/build.py"], check=True)
    for name in ("prometheusrule.yaml", "dashboards/dashboards.yaml"):
        built = (tmp_path / "deploy/kubernetes" / name).read_text()
        assert built == (MANIFESTS / name).read_text(), "run `make kubernetes`"


def test_a_prometheus_without_the_operator_takes_the_scrape_configuration(tmp_path: Path) -> None:
    content = yaml.safe_load((MANIFESTS / "without-operator" / "scrape.yml").read_text())
    (scrape,) = content["scrape_configs"]
    # Debian builds Prometheus without Kubernetes's discovery.
    (discovery,) = scrape.pop("kubernetes_sd_configs")
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(content))
    checked = [tool("promtool"), "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(checked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert scrape["job_name"] == "trainvitals", "the rules know the exporter by its job"
    daemons = only(resources(MANIFESTS / "without-operator"), "DaemonSet")
    labels = daemons["spec"]["template"]["metadata"]["labels"]
    (selector,) = discovery["selectors"]
    assert dict(pair.split("=") for pair in selector["label"].split(",")).items() <= labels.items()
    assert discovery["namespaces"]["names"] == [daemons["metadata"]["namespace"]]
