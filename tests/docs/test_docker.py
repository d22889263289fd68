"""The image and the compose file, as far as a machine without Docker can tell: what they start, starts."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "docker"
TOKEN = "a-token-that-is-long-enough-0001"


@pytest.fixture
def services():
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))["services"]


def test_the_image_has_what_it_names_and_runs_as_nobody_in_particular():
    import tomllib

    text = (FOLDER / "Dockerfile").read_text("utf-8")
    (named,) = re.findall(r"tokenmeter-sdk\[([\w,-]+)\]", text)
    project = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(named.split(",")) <= set(project["optional-dependencies"])
    assert re.search(r"^USER 10001$", text, re.MULTILINE)
    assert text.index("VOLUME /var/lib/tokenmeter") < text.index("USER 10001")


def test_the_image_is_made_of_sources_that_are_there_and_sent_to_the_builder(services):
    root = (FOLDER / services["app"]["build"]["context"]).resolve()
    assert root / services["app"]["build"]["dockerfile"] == FOLDER / "Dockerfile"
    text = (FOLDER / "Dockerfile").read_text("utf-8")
    copied = [name for line in re.findall(r"^COPY (.+) /tmp/tokenmeter", text, re.MULTILINE) for name in line.split()]
    sent = (FOLDER / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert sorted(f"!{name}" for name in copied) == sorted(line for line in sent if line.startswith("!"))
    assert all((root / name).exists() for name in copied)


def test_services_of_ours_have_a_read_only_root_no_rights_and_a_volume(services):
    for name in ("app", "dashboard"):
        service = services[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert any(volume.endswith(":/var/lib/tokenmeter") for volume in service["volumes"])
        assert "/var/lib/tokenmeter" in service["environment"]["TOKENMETER_STORE"]
        assert service["depends_on"]["db"]["condition"] == "service_healthy"
    assert "healthcheck" in services["db"]
    assert services["dashboard"]["ports"] == ["127.0.0.1:8484:8484"]


def test_every_container_on_kubernetes_knows_the_ledger_from_the_secret_that_the_page_makes():
    yaml = pytest.importorskip("yaml")
    page = (FOLDER.parents[1] / "docs" / "how-to" / "kubernetes.md").read_text("utf-8")
    assert re.findall(r"--from-literal=(\w+)=", page) == ["PGPASSWORD", "TOKENMETER_STORE"]
    containers = []

    def look(part):
        for name, value in part.items() if isinstance(part, dict) else enumerate(part):
            if name == "containers":
                containers.extend(value)
            elif isinstance(value, dict | list):
                look(value)

    for block in re.findall(r"```yaml\n(.+?)```", page, re.DOTALL):
        look(yaml.safe_load(block))
    assert len(containers) == 3
    assert all(one["envFrom"] == [{"secretRef": {"name": "tokenmeter"}}] for one in containers)


def test_the_dashboard_starts_as_the_file_says_and_its_health_check_passes(services, tmp_path):
    """Its port is another one here, and the ledger a file."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [port if part == "8484" else part for part in services["dashboard"]["command"]]
    kind, *check = services["dashboard"]["healthcheck"]["test"]
    assert kind == "CMD"
    check = [sys.executable if part == "python" else part.replace("8484", port) for part in check]
    store = f"sqlite:///{tmp_path}/ledger.db"
    environment = os.environ | {"TOKENMETER_DASHBOARD_TOKEN": TOKEN, "TOKENMETER_STORE": store, "HOME": str(tmp_path)}
    made = "import tokenmeter; tokenmeter.default_meter().close()"
    subprocess.run([sys.executable, "-c", made], env=environment, check=True, cwd=tmp_path)
    started = subprocess.Popen(
        [sys.executable, "-m", "tokenmeter", *command],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        for _ in range(100):
            if subprocess.run(check, env=environment, capture_output=True, check=False).returncode == 0:
                break
            assert started.poll() is None, started.communicate()[0]
            time.sleep(0.2)
        else:
            pytest.fail("the health check never passed")
    finally:
        started.terminate()
        started.communicate(timeout=20)
