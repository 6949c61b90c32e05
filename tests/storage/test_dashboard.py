"""The dashboard over HTTP, on a study that is being run, and while its database is away."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from autoft.errors import ClusterError
from storage import StorageURL, open_study, parse_storage_url
from storage.dashboard import DashboardServer, make_dashboard_server, serve_dashboard
from tests.postgres_fixtures import PostgresServer
from tests.storage.dashboard_visits import serving


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


def test_a_role_that_may_only_read_is_enough(url: StorageURL, postgres_server: PostgresServer, database: str) -> None:
    open_study(url, "seen", directions=["maximize"], create=True).close()
    postgres_server.execute("CREATE ROLE looker LOGIN")
    try:
        postgres_server.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO looker", database)
        looker = parse_storage_url(postgres_server.socket_url(database).replace("tuner@", "looker@"), "test")
        with serving(looker) as site:
            assert site.ask("/api/studies").json["study_summaries"][0]["study_name"] == "seen"
            assert site.ask("/api/studies/1").status == 200
            assert site.ask("/dashboard").status == 200
    finally:
        postgres_server.execute("DROP OWNED BY looker", database)
        postgres_server.execute("DROP ROLE looker")


def test_an_outage_is_said_plainly_and_ends_by_itself(
    url: StorageURL, postgres_server: PostgresServer, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    open_study(url, "kept", directions=["maximize"], create=True).close()
    with serving(url) as site:
        assert site.ask("/api/studies").status == 200
        postgres_server.execute(f"ALTER DATABASE {database} WITH ALLOW_CONNECTIONS false")
        try:
            postgres_server.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
            for path in ("/api/studies", "/api/studies", "/api/studies/1", "/csv/1"):
                answer = site.ask(path)
                assert (answer.status, answer.headers["retry-after"]) == (503, "5"), path
                assert answer.json["reason"] == "the database cannot be reached just now; this recovers by itself when it is back"
            assert site.ask("/dashboard").status == 200  # the page itself needs no database, and asks again by itself
        finally:
            postgres_server.execute(f"ALTER DATABASE {database} WITH ALLOW_CONNECTIONS true")
        assert site.ask("/api/studies").json["study_summaries"][0]["study_name"] == "kept"
    said = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert [line.partition(" the database")[0] for line in said] == ["the dashboard cannot reach", "the dashboard reaches again"]


def test_many_visitors_at_once_do_not_wait_for_connections(url: StorageURL) -> None:
    open_study(url, "kept", directions=["maximize"], create=True).close()
    with serving(url) as site, ThreadPoolExecutor(16) as visitors:
        answers = list(visitors.map(lambda _: site.ask("/api/studies"), range(64)))
    assert {answer.status for answer in answers} == {200}
