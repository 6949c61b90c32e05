"""The stock dashboard over HTTP, on a study that is being run."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoft.errors import ClusterError
from storage import StorageURL, list_studies, open_study, parse_storage_url
from storage.dashboard import DashboardServer, make_dashboard_server, serve_dashboard


def _request(address: str, method: str = "GET", body: object = None, **headers: str) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data=data, method=method, headers={"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            content = answer.read()
            return answer.status, json.loads(content) if answer.headers.get_content_type() == "application/json" and content else content
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.fixture
def server(url: StorageURL) -> Iterator[DashboardServer]:
    with make_dashboard_server(url, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_running_study_is_shown(url: StorageURL, server: DashboardServer, capfd: pytest.CaptureFixture[str]) -> None:
    with open_study(url, "live", directions=["maximize"], create=True) as handle:
        trial = handle.study.ask()
        trial.suggest_float("lr", 1e-5, 1e-1, log=True)
        trial.report(0.5, 4)
        status, listing = _request(f"{server.url}/api/studies")
        (study,) = listing["study_summaries"]
        assert (status, study["study_name"]) == (200, "live")
        _, detail = _request(f"{server.url}/api/studies/{study['study_id']}")
        (shown,) = detail["trials"]
        assert shown["state"] == "Running"
        assert [param["name"] for param in shown["params"]] == ["lr"]
        assert shown["intermediate_values"] == [{"step": 4, "value": 0.5}]
        handle.study.tell(trial, 0.5)  # the visitor took nothing from the owner
    status, page = _request(f"{server.url}/dashboard")
    assert status == 200
    assert b"<html" in page
    assert capfd.readouterr() == ("", "")


def test_web_pages_of_others_cannot_write(url: StorageURL, server: DashboardServer) -> None:
    open_study(url, "kept", directions=["maximize"], create=True).close()
    _, listing = _request(f"{server.url}/api/studies")
    address = f"{server.url}/api/studies/{listing['study_summaries'][0]['study_id']}"
    assert _request(address, "DELETE", Origin="http://evil.example")[0] == 403
    assert _request(address, "DELETE", Origin="null")[0] == 403
    assert [study.name for study in list_studies(url)] == ["kept"]
    assert _request(f"{address}/note", "PUT", {"version": 1, "body": "mine"}, Origin=server.url)[0] == 204


def test_visitors_do_not_migrate(server: DashboardServer) -> None:
    for path in ("/incompatible-rdb-schema", "/incompatible-rdb-schema/"):
        assert _request(f"{server.url}{path}", "POST")[0] == 403


def test_an_empty_database_shows_no_studies(empty_database_url: str, tmp_path: Path) -> None:
    for text in (empty_database_url, f"sqlite:///{tmp_path}/new.db"):
        with make_dashboard_server(parse_storage_url(text, "test"), port=0) as server:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
            assert _request(f"{server.url}/api/studies") == (200, {"study_summaries": []})
            server.shutdown()


def test_a_taken_port_is_one_clear_line(url: StorageURL) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=rf"cannot serve the dashboard on 127.0.0.1:{port}: the port is in use"):
            serve_dashboard(url, port=port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("203.0.113.1", 0), ("no.such.host.invalid", 0)])
def test_a_wrong_address_is_one_clear_line(url: StorageURL, host: str, port: int) -> None:
    with pytest.raises(ClusterError, match="cannot serve the dashboard") as caught:
        serve_dashboard(url, host, port)
    assert "\n" not in str(caught.value)
