# SPDX-License-Identifier: Apache-2.0
"""What Kubernetes would be given: k8s/base, and the overlay of k8s/README.md, rendered offline."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

K8S = Path(__file__).resolve().parents[2] / "k8s"
KUBECTL = Path(sys.executable).with_name("kubectl")

Manifest = dict[str, Any]


def render(folder: Path) -> list[Manifest]:
    command = [str(KUBECTL), "kustomize", str(folder)]
    rendered = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return list(yaml.safe_load_all(rendered))


def render_base() -> list[Manifest]:
    return render(K8S / "base")


def render_overlay(scratch: Path) -> list[Manifest]:
    """The first YAML block of the README, laid beside a copy of the base."""
    found = re.search(r"```yaml\n(.*?)```", (K8S / "README.md").read_text(), re.DOTALL)
    assert found, "k8s/README.md shows no overlay"
    shutil.copytree(K8S / "base", scratch / "base")
    overlay = scratch / "overlay"
    overlay.mkdir()
    (overlay / "kustomization.yaml").write_text(found[1])
    return render(overlay)


def job_of(manifests: list[Manifest]) -> Manifest:
    (job,) = (manifest for manifest in manifests if manifest["kind"] == "Job")
    return job


def container_of(job: Manifest, name: str) -> Manifest:
    (container,) = (one for one in job["spec"]["template"]["spec"]["containers"] if one["name"] == name)
    return dict(container)
