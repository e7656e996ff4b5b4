"""The files that operators use agree with the code and with each other."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from hyper_scheduler.providers.make import PACKAGES
from hyper_servicekit.signing import new_key
from hyper_servicekit.tokens import Verifier
from scripts import compose_env, dashboards, requirements

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
def test_promtool_likes_the_rules() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


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
    assert extras == own.get(service, [service])


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
