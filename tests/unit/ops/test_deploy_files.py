"""The files that operators use agree with the code and with each other."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from hyper_scheduler import metrics
from hyper_scheduler.providers.make import PACKAGES
from hyper_servicekit.signing import new_key
from hyper_servicekit.tokens import Verifier
from scripts import compose_certs, compose_env, dashboards, requirements

ROOT = Path(__file__).parents[3]
SERVICES = ("scheduler", "storage-gateway", "inference", "matcher", "worker")
RULES = ROOT / "deploy/prometheus/rules/hyper.yml"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
_METRIC = re.compile(r"\bhyper_[a-z]\w+")


def declared_metrics() -> set[str]:
    """Names of series that the services' code declares, histograms taken apart."""
    found: set[str] = set()
    for path in (ROOT / "services").rglob("*.py"):
        kinds = re.findall(
            r"\b(Counter|Gauge|Histogram|Summary)\(\s*\"(hyper_\w+)\"", path.read_text()
        )
        for kind, name in kinds:
            suffixes = ("_bucket", "_sum", "_count") if kind == "Histogram" else ("",)
            found |= {name + suffix for suffix in suffixes}
    return found


def test_dashboards_are_rendered_from_their_code() -> None:
    committed = {path.name: path.read_text() for path in dashboards.FOLDER.glob("*.json")}
    assert committed == dashboards.texts(), "run `make dashboards`"


def test_rules_and_dashboards_name_metrics_that_exist() -> None:
    known = declared_metrics()
    groups = yaml.safe_load(RULES.read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    recorded = {rule["record"] for rule in rules if "record" in rule}
    queries = [rule["expr"] for rule in rules]
    queries += [
        query
        for dashboard in dashboards.DASHBOARDS
        for row in dashboard.rows
        for panel in row
        for query, _ in panel.queries
    ]
    for query in queries:
        for name in recorded:
            query = query.replace(name, "")
        unknown = set(_METRIC.findall(query)) - known
        assert not unknown, f"{query}: {unknown}"


def test_what_is_bought_is_counted_from_0() -> None:
    """A series that begins at 1 has no increase: the first launch would be seen by nobody."""
    (placement,) = (each for each in dashboards.DASHBOARDS if each.uid == "hyper-placement")
    queries = [query for row in placement.rows for panel in row for query, _ in panel.queries]
    names = {name for query in queries for name in re.findall(r"hyper_placement_\w+", query)}
    assert len(names) >= 5
    metrics.know_offers(["small"])
    for name in names:
        samples = [
            sample.value for family in REGISTRY.collect() for sample in family.samples
            if sample.name == name and sample.labels["offer"] == "small"
        ]  # fmt: skip
        assert samples and not any(samples), name


def test_metrics_are_named_by_the_conventions() -> None:
    names = {re.sub(r"_(bucket|sum|count)\Z", "", name) for name in declared_metrics()}
    assert names
    for name in names:
        assert re.fullmatch(r"hyper_[a-z0-9_]+", name)
        assert not re.search(
            r"_(ms|us|milliseconds|minutes|hours|kb|mb|gb|mib|percent)(_|\Z)", name
        )
    for path in (ROOT / "services").rglob("*.py"):
        for kind, name in re.findall(r"\b(Counter|Gauge)\(\s*\"(hyper_\w+)\"", path.read_text()):
            assert name.endswith("_total") == (kind == "Counter"), name


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_likes_the_rules_and_they_fire_when_they_should() -> None:
    cases = ROOT / "deploy/prometheus/tests/alerts.yml"
    for arguments in (["check", "rules", str(RULES)], ["test", "rules", str(cases)]):
        done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case() -> None:
    cases = (ROOT / "deploy/prometheus/tests/alerts.yml").read_text()
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            assert rule.get("alert", "") in cases, rule["alert"]


@pytest.mark.parametrize("service", SERVICES)
def test_images_are_slim_and_run_as_nobody_special(service: str) -> None:
    text = (ROOT / "services" / service / "Dockerfile").read_text()
    first, last = (stage for stage in text.split("\nFROM ") if "slim-bookworm" in stage)
    assert "-c constraints.txt" in first and "pip" not in last
    assert re.search(r"^USER hyper$", last, re.MULTILINE) and "HEALTHCHECK" in last
    extras = re.findall(r"requirements\.py ([a-z ]+) >", first)[0].split()
    own = {
        "storage-gateway": ["storage"], "worker": ["worker", "matcher", "inference"],
        "scheduler": ["scheduler", *PACKAGES],
    }  # fmt: skip
    assert extras == [*own.get(service, [service]), "traces"]
    build = next(step for step in first.split("RUN ") if "--no-deps ." in step)
    assert "PIP_CONSTRAINT=constraints.txt" in build  # for hatchling, which makes the package
    assert re.search(r"^hatchling==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


@pytest.mark.parametrize("extra", ["scheduler", "worker", "storage", "inference", "matcher"])
def test_requirements_of_an_extra(extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = requirements.requirements(project, [extra])
    assert not [each for each in found if "hyper-dl" in each or each.startswith("torch")]
    assert set(project["dependencies"]) <= set(found)
    assert set(project["optional-dependencies"]["servicekit"]) <= set(found)


def test_compose_opens_ports_to_this_machine_alone_and_bounds_everything() -> None:
    for name, service in COMPOSE["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), (name, port)
        assert "mem_limit" in service and "pids_limit" in service, name
        assert "no-new-privileges:true" in service["security_opt"], name
        for mount in service.get("volumes", []):
            source = mount.partition(":")[0]
            assert source.startswith("./deploy/") or source in COMPOSE["volumes"], mount
        if name not in SERVICES:  # ours have theirs in the image
            assert "healthcheck" in service, name


def networks(service: str) -> set[str]:
    return set(COMPOSE["services"][service].get("networks", ["default"]))


def test_workers_share_a_network_with_what_they_call_alone() -> None:
    """Their tasks are strangers' programs; etcd asks nobody who they are."""
    seen = {name for name in COMPOSE["services"] if networks(name) & networks("worker")}
    calls = {"scheduler", "storage-gateway", "inference", "matcher", "s3"}
    assert seen - {"worker", "prometheus"} == calls  # Prometheus has to reach them
    for name in networks("etcd"):
        assert COMPOSE["networks"][name]["internal"]
        assert "ports" not in COMPOSE["services"]["etcd"]
    for name in ("scheduler", "storage-gateway", "inference", "matcher", "prometheus"):
        assert networks(name) & networks("etcd"), name


def test_the_worker_token_is_in_no_process_that_tasks_can_read() -> None:
    """The agent hides itself; what else is started with its environment has to be hidden too."""
    assert COMPOSE["services"]["worker"]["init"] is False
    text = (ROOT / "services/worker/Dockerfile").read_text()
    assert 'CMD ["/usr/local/bin/closed-sh", "-c", "unset HYPER_TOKEN; ' in text
    assert 'ENTRYPOINT ["python", "-P", ' in text


def test_compose_has_no_password_that_was_not_generated() -> None:
    made = compose_env.complete({}, 0.0)
    secret = re.compile(r"(PASSWORD|SECRET|TOKEN|ACCESS_KEY|AUTH_KEYS|MINIO_ROOT)")
    for name, service in COMPOSE["services"].items():
        for key, value in service.get("environment", {}).items():
            if secret.search(key):
                match = re.fullmatch(r"\$\{(\w+):\?run make compose-env first\}", value)
                assert match and match[1] in made, (name, key)


def test_env_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    assert compose_env.write(path)
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_text()
    assert compose_env.write(path) == [] and path.read_text() == before
    known = compose_env.read(path)
    verifier = Verifier({compose_env.KEY_ID: known["HYPER_AUTH_KEY"]})
    assert verifier.read(known["HYPER_TOKEN"], 0.0).subject == "compose"
    path.write_text("\n".join(li for li in before.splitlines() if "GRAFANA" not in li) + "\n")
    assert compose_env.write(path) == ["HYPER_GRAFANA_PASSWORD"]
    assert compose_env.read(path)["HYPER_S3_SECRET_KEY"] == known["HYPER_S3_SECRET_KEY"]


DAY_S = 86_400.0


def test_tokens_that_end_soon_or_were_signed_with_another_key_are_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / ".env"
    compose_env.write(path)
    path.write_text(path.read_text() + "# mine\nHYPER_MINE=1\n")
    tokens = {"HYPER_SERVICE_TOKEN", "HYPER_WORKER_TOKEN", "HYPER_TOKEN"}
    before = compose_env.read(path)
    now_s = time.time()
    assert compose_env.complete(before, now_s + 334 * DAY_S) == {}
    assert set(compose_env.complete(before, now_s + 336 * DAY_S)) == tokens

    other = path.read_text().replace(before["HYPER_AUTH_KEY"], new_key())
    path.write_text(other)
    assert set(compose_env.write(path)) == tokens | {"HYPER_AUTH_PUBLIC_KEY"}
    after = compose_env.read(path)
    verifier = Verifier({compose_env.KEY_ID: after["HYPER_AUTH_PUBLIC_KEY"]})
    for name in tokens:
        assert verifier.read(after[name], now_s).tenant == "*"
        assert path.read_text().count(f"\n{name}=") == 1
    kept = before.keys() - tokens - {"HYPER_AUTH_KEY", "HYPER_AUTH_PUBLIC_KEY"}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert "# mine\n" in path.read_text() and compose_env.write(path) == []


def test_whatever_asks_for_tokens_bounds_the_calls_of_one() -> None:
    compose = str(COMPOSE["services"])
    kubernetes = str(manifests())
    for name in set(re.findall(r"HYPER_([A-Z]+)__AUTH_KEYS", compose)):
        assert (
            f"HYPER_{name}__CALLS_PER_S" in compose and f"HYPER_{name}__CALLS_PER_S" in kubernetes
        )


def test_only_schedulers_hold_the_key_that_signs(tmp_path: Path) -> None:
    for name, service in COMPOSE["services"].items():
        values = " ".join(map(str, service.get("environment", {}).values()))
        assert ("${HYPER_AUTH_KEY:" in values) == (name == "scheduler"), name
    for name, docs in manifests().items():
        assert ("key': 'auth-key'" in str(docs)) == (name == "scheduler.yaml"), name
    old = {"HYPER_AUTH_KEY": "a secret of an earlier release"}
    made = compose_env.complete(old, 0.0)
    assert made["HYPER_AUTH_PUBLIC_KEY"] == old["HYPER_AUTH_KEY"]  # it goes on


TLS_COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.tls.yml").read_text())


def test_compose_with_tls_changes_nothing_else() -> None:
    plain, secured = COMPOSE["services"], TLS_COMPOSE["services"]
    assert set(secured) == {*SERVICES, "etcd", "prometheus"}
    etcd = [flag.replace("https://", "http://") for flag in secured["etcd"]["command"]]
    added = [flag for flag in etcd if flag not in plain["etcd"]["command"]]
    assert set(plain["etcd"]["command"]) <= set(etcd)
    assert all("cert" in flag or "/certs/" in flag for flag in added), added
    assert "--client-cert-auth" in added
    prometheus = [
        flag.replace("prometheus-tls.yml", "prometheus.yml")
        for flag in secured["prometheus"]["command"]
    ]
    assert prometheus == plain["prometheus"]["command"]
    for name, service in secured.items():
        assert "networks" not in service and "ports" not in service
        for key in service.get("environment", {}):
            assert "TLS" in key or key.startswith("ETCDCTL_"), (name, key)
    assert "worker" in secured["worker"]["volumes"][0]  # a caller's certificate, not a service's


def test_prometheus_with_tls_asks_the_same() -> None:
    folder = ROOT / "deploy/prometheus"
    plain, secured = (
        yaml.safe_load((folder / name).read_text())
        for name in ("prometheus.yml", "prometheus-tls.yml")
    )

    def named(config: dict[str, Any]) -> set[Any]:
        found: set[Any] = set()
        for job in config.pop("scrape_configs"):
            for discovery in job.get("dns_sd_configs", []):
                found |= {(name, discovery["port"]) for name in discovery["names"]}
            found |= {each for part in job.get("static_configs", []) for each in part["targets"]}
            secured = job.get("scheme") == "https"
            assert secured == ("tls_config" in job)
        return found

    assert named(plain) == named(secured)
    assert plain == secured


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus-tls.yml"])
def test_promtool_likes_the_configuration(name: str) -> None:
    done = subprocess.run(
        ["promtool", "check", "config", "--syntax-only", str(ROOT / "deploy/prometheus" / name)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_certificates_of_compose(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    compose_certs.make(folder)
    authority = (folder / "authority/ca.pem").read_bytes()
    before = (folder / "service/service.key").read_bytes()
    compose_certs.make(folder)  # renews all but the authority
    assert (folder / "service/service.key").read_bytes() != before
    assert folder.stat().st_mode & 0o777 == 0o700  # what is in it containers can read
    for name in ("service", "worker", "client"):
        shown = {file.name: file for file in (folder / name).iterdir()}
        assert set(shown) == {"ca.pem", f"{name}.pem", f"{name}.key"}
        assert shown["ca.pem"].read_bytes() == authority
        assert all(file.stat().st_mode & 0o777 == 0o644 for file in shown.values())
    env = tmp_path / ".env"
    compose_env.write(env)
    assert compose_certs.switch_on(env) and not compose_certs.switch_on(env)
    assert compose_env.read(env)["COMPOSE_FILE"] == compose_certs.FILES
    assert env.stat().st_mode & 0o777 == 0o600


KUBERNETES = ROOT / "deploy/kubernetes"


def manifests() -> dict[str, list[dict[str, Any]]]:
    files = (p for p in KUBERNETES.glob("*.yaml") if p.name != "adapter-rules.yaml")
    return {path.name: list(yaml.safe_load_all(path.read_text())) for path in files}


def test_kubernetes_has_all_that_is_there() -> None:
    found = manifests()
    (kustomization,) = found.pop("kustomization.yaml")
    assert set(kustomization["resources"]) == set(found)
    kinds = [doc["kind"] for docs in found.values() for doc in docs]
    for kind in ("HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy", "StatefulSet"):
        assert kind in kinds
    deployments = {
        doc["metadata"]["name"]: doc["spec"]["template"]["spec"]
        for docs in found.values()
        for doc in docs
        if doc["kind"] == "Deployment"
    }
    assert set(deployments) == set(SERVICES)
    secrets = yaml.safe_load(compose_env.kubernetes(compose_env.complete({}, 0.0)))["stringData"]
    for name, pod in deployments.items():
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
        (container,) = pod["containers"]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert probe in container, (name, probe)
        for variable in container["env"]:
            reference = variable["valueFrom"].get("secretKeyRef")
            assert reference is None or reference["key"] in secrets, variable
        asks_for_keys = any("AUTH_KEYS" in variable["name"] for variable in container["env"])
        assert asks_for_keys != (name == "worker")
    wanted = {"PodDisruptionBudget": set(SERVICES), "HorizontalPodAutoscaler": {*SERVICES[1:]}}
    for kind, names in wanted.items():  # schedulers: one leads, however many there are
        of_kind = [doc for docs in found.values() for doc in docs if doc["kind"] == kind]
        assert {doc["metadata"]["name"] for doc in of_kind} == names, kind


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("tls", [False, True])
def test_the_kustomization_is_what_kubernetes_takes(tmp_path: Path, tls: bool) -> None:
    folder = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, folder)
    if tls:
        file = folder / "kustomization.yaml"
        text = file.read_text()
        for line in ("components:", "  - tls"):
            assert f"\n# {line}" in text
            text = text.replace(f"\n# {line}", f"\n{line}")
        file.write_text(text)
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text(done.stdout)
    program = Path(sys.executable).with_name("kubernetes-validate")
    checked = subprocess.run(
        [program, "--quiet", "--strict", rendered], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    docs = list(yaml.safe_load_all(done.stdout))
    for doc in docs:
        if doc["kind"] != "Deployment":
            continue
        name = doc["metadata"]["name"]
        (container,) = doc["spec"]["template"]["spec"]["containers"]
        for probe in ("startupProbe", "readinessProbe"):
            scheme = container[probe]["httpGet"].get("scheme", "HTTP")
            assert (scheme == "HTTPS") == (tls and name != "worker"), name  # as its metrics are
    settings = {
        key for doc in docs if doc["kind"] == "ConfigMap" for key in doc["data"] if "__TLS__" in key
    }
    assert len(settings) == (12 if tls else 0)
