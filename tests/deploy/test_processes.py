"""The compose file's own commands as plain processes, behind the secrets its script makes: a cluster of three nodes runs a study to its end,
a stranger is refused, and the proxy serves the dashboard over TLS."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import skip_or_fail
from tests.deploy.compose import DEPLOY, as_process, make_secrets, service
from tests.launching import eventually
from tests.postgres_fixtures import free_port
from tests.studies import write_study

pytestmark = pytest.mark.slow


class Service:
    """A running service; its output goes to a file."""

    def __init__(self, name: str, command: list[str], environment: dict[str, str], folder: Path) -> None:
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def says(self, text: str, seconds: float = 90) -> None:
        """Wait until it has said something."""
        assert eventually(lambda: text in self.output or self.process.poll() is not None, seconds), self.output[-3000:]
        assert text in self.output, self.output[-3000:]

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, seconds: float = 60) -> int:
        """SIGTERM, as `docker stop` sends it; what is left of its children is killed, as the end of a container does."""
        children = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.process.terminate()
        try:
            return self.process.wait(seconds)
        finally:
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Ray's sockets are in it."""
    with tempfile.TemporaryDirectory(prefix="ft-", dir="/tmp", ignore_cleanup_errors=True) as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.fixture
def secrets(folder: Path, password_database_url: str) -> Path:
    """Those of the script, but with the URL of a database there is."""
    made = make_secrets(folder / "secrets")
    (made / "storage_url").unlink()
    (made / "storage_url").write_text(password_database_url)
    return made


def test_a_study_runs_on_the_cluster_and_a_stranger_is_refused(folder: Path, secrets: Path, tiny_vit: Path) -> None:
    study = write_study(folder / "study", tiny_vit, search__n_trials=2, trial__steps=5)
    address = f"127.0.0.1:{free_port()}"
    places = {"head:6379": address, "--port=6379": f"--port={address.partition(':')[2]}", "/study/study.yaml": str(study), "/runs": str(folder / "runs")}
    local = {"RAY_TMPDIR": str(folder / "ray"), "AUTOFT_CACHE_DIR": str(folder / "cache"), "HOME": str(folder)}

    def start(name: str, *more: str, **changed: str) -> Service:
        command, environment = as_process(name, places, secrets, **local, **changed)
        return Service(f"{name}{len(changed)}", [*command, *more], environment, folder)

    with contextlib.ExitStack() as stack:
        head = start("head")
        stack.callback(head.stop)
        head.says("Ray runtime started")
        worker = start("cpu-worker", "--cpus", "2")
        stack.callback(worker.stop)
        worker.says("joined the cluster")
        assert list(folder.glob("ray/**/session_latest/sockets/raylet*")), "what the probes of deploy/kuberay look for"
        coordinator = start("coordinator", "--device", "cpu", "--workers", "1")
        stack.callback(coordinator.stop)

        (folder / "wrong").write_text("0" * 64)
        stranger = start("cpu-worker", "--cpus", "1", RAY_AUTH_TOKEN_PATH=str(folder / "wrong"))
        stack.callback(stranger.stop)
        assert stranger.process.wait(60) == 4
        assert "asks for another token than ours" in stranger.output, stranger.output[-2000:]

        healthy = [part.replace("127.0.0.1:6379", address) for part in service("head")["healthcheck"]["test"][1:]]
        _, environment = as_process("head", places, secrets, **local)
        assert subprocess.run(healthy, env=environment, capture_output=True, timeout=60).returncode == 0
        refused = subprocess.run(healthy, env={**environment, "RAY_AUTH_TOKEN_PATH": str(folder / "wrong")}, capture_output=True, timeout=60)
        assert refused.returncode != 0

        coordinator.says("ended with exit code 0", 300)  # half a minute on two free cores
        assert "waiting to be stopped" in coordinator.output
        assert coordinator.stop() == 0
        for one in (head, worker, coordinator, stranger):
            told = one.output
            for secret in ("ray_token", "autoft_password", "dashboard_token"):
                assert (secrets / secret).read_text().strip() not in told
        assert head.process.poll() is None and worker.process.poll() is None
    assert list((folder / "runs").glob("*/summary.json"))


def test_the_dashboard_is_served_over_tls_and_asks_who_comes(folder: Path, secrets: Path) -> None:
    caddy = shutil.which("caddy")
    if caddy is None:
        skip_or_fail("needs caddy (Debian's package)")
    port, plain, secure = (str(free_port()) for _ in range(3))
    command, environment = as_process("dashboard", {"8080": port}, secrets, AUTOFT_DOMAIN="localhost", AUTOFT_WEB_NETWORK="127.0.0.1/32")
    configuration = (DEPLOY / "Caddyfile").read_text(encoding="utf-8").replace("https_port 8443", f"https_port {secure}")
    (folder / "Caddyfile").write_text(configuration.replace("http_port 8080", f"http_port {plain}"))
    proxy_environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "XDG_DATA_HOME": str(folder / "data"),
        "AUTOFT_DOMAIN": "localhost",
        "AUTOFT_TLS": "internal",
        "AUTOFT_DASHBOARD": f"127.0.0.1:{port}",
    }
    with contextlib.ExitStack() as stack:
        dashboard = Service("dashboard", command, environment, folder)
        stack.callback(dashboard.stop)
        dashboard.says("optuna-dashboard at")
        proxy = Service("proxy", [str(caddy), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"], proxy_environment, folder)
        stack.callback(proxy.stop)
        root = folder / "data" / "caddy" / "pki" / "authorities" / "local" / "root.crt"
        assert eventually(lambda: root.exists() and "certificate obtained" in proxy.output, 30), proxy.output[-2000:]
        trusted = ssl.create_default_context(cafile=str(root))

        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=trusted), _Stay(), urllib.request.ProxyHandler({}))

        def ask(path: str, form: dict[str, str] | None = None, cookie: str = "") -> tuple[int, dict[str, str]]:
            data = urllib.parse.urlencode(form).encode() if form else None
            request = urllib.request.Request(f"https://localhost:{secure}{path}", data, {"Cookie": cookie})
            try:
                answer = opener.open(request, timeout=30)
            except urllib.error.HTTPError as error:
                answer = error
            with answer:
                return answer.status, {key.lower(): value for key, value in answer.headers.items()}

        status, headers = ask("/api/studies")
        assert status == 401
        assert headers["strict-transport-security"].startswith("max-age=") and headers["x-content-type-options"] == "nosniff"
        assert ask("/sign-in", {"token": "0" * 64})[0] == 401
        status, headers = ask("/sign-in", {"token": (secrets / "dashboard_token").read_text().strip()})
        assert status in (302, 303)
        assert "Secure" in headers["set-cookie"] and "HttpOnly" in headers["set-cookie"]  # the dashboard believes its proxy about https
        assert ask("/api/studies", cookie=headers["set-cookie"].partition(";")[0])[0] == 200
        for told in (dashboard.output, proxy.output):
            assert not any(file.read_text().strip() in told for file in secrets.iterdir())


class _Stay(urllib.request.HTTPRedirectHandler):
    """Show a redirect instead of following it."""

    def redirect_request(self, *arguments: object) -> None:
        return None
