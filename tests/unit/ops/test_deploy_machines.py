"""What lets the scheduler launch pods: taken into the manifests by one line."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from hyper_scheduler.catalogue import parse_catalogue
from hyper_scheduler.config import PlacementSettings

ROOT = Path(__file__).parents[3]
MANIFESTS = ROOT / "deploy/kubernetes"


def test_its_offers_are_a_catalogue() -> None:
    found = parse_catalogue((MANIFESTS / "machines/offers.yaml").read_text())
    assert [each.provider for each in found.offers] == ["kubernetes"]
    text = (MANIFESTS / "machines/offers.yaml").read_text()
    both = text.replace("  # - name", "  - name").replace("  #   ", "    ")
    assert len(parse_catalogue(both).offers) == 2  # what is commented out is right, too


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_one_line_takes_them_in(tmp_path: Path) -> None:
    folder = tmp_path / "kubernetes"
    shutil.copytree(MANIFESTS, folder)
    file = folder / "kustomization.yaml"
    text = file.read_text()
    for line in ("components:", "  - machines"):
        assert f"\n# {line}" in text
        text = text.replace(f"\n# {line}", f"\n{line}")
    file.write_text(text)
    made = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True
    )
    objects = list(yaml.safe_load_all(made.stdout))

    def named(kind: str, name: str) -> dict[str, Any]:
        (found,) = [o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name]
        return dict(found)

    pod = named("Deployment", "scheduler")["spec"]["template"]["spec"]
    account = named("ServiceAccount", pod["serviceAccountName"])["metadata"]
    assert pod["automountServiceAccountToken"] is True
    (subject,) = named("RoleBinding", "hyper-machines")["subjects"]
    assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
    (container,) = pod["containers"]
    values = {each["name"]: each.get("value") for each in container["env"]}
    assert "HYPER_SCHEDULER__AUTH_KEYS__K1" in values  # what was there is there
    for name in values:
        if name.startswith("HYPER_SCHEDULER__PLACEMENT__"):
            assert name.rpartition("__")[2].lower() in PlacementSettings.model_fields
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "offers"]
    assert values["HYPER_SCHEDULER__PLACEMENT__OFFERS"] == f"{mount['mountPath']}/offers.yaml"
    (volume,) = [each for each in pod["volumes"] if each["name"] == "offers"]
    named("ConfigMap", volume["configMap"]["name"])
