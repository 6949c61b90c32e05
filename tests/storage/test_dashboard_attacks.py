"""What strangers, other web pages and visitors try, and what they get. The tests with a real browser are in test_dashboard_browser.py."""

from __future__ import annotations

import http.client
import io
import itertools
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, upload_artifact

from autoft.errors import ConfigError
from storage import StorageURL, list_studies, open_study, parse_storage_url
from storage.dashboard import DashboardOptions
from storage.dashboard.options import parse_network
from storage.dashboard.passwords import hash_password, read_password_file, store_password
from storage.dashboard.peers import Peers
from storage.dashboard.sign_in import SignIn, TooManyFailures
from tests.storage.dashboard_visits import TOKEN, Site, serving

WRITES = [
    ("POST", "/api/studies", {"study_name": "mine", "directions": ["maximize"]}),
    ("DELETE", "/api/studies/1", None),
    ("POST", "/api/studies/1/rename", {"study_name": "mine"}),
    ("PUT", "/api/studies/1/note", {"version": 1, "body": "mine"}),
    ("POST", "/api/trials/1/tell", {"state": "Complete", "values": [1.0]}),
    ("POST", "/api/trials/1/user-attrs", {"user_attrs": {"mine": 1}}),
    ("POST", "/api/artifacts/1", {"file": "data:text/html;base64,AAAA", "filename": "a.html"}),
    ("DELETE", "/api/artifacts/1/abc", None),
    ("PATCH", "/api/studies/1", {}),
    ("BREW", "/api/studies/1", {}),
]
READS = ["/", "/dashboard", "/dashboard/studies/1", "/api/meta", "/api/studies", "/api/studies/1", "/csv/1", "/static/bundle.js", "/favicon.ico", "/nothing"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite database with one study of one trial. What is tried here never gets as far as the kind of database."""
    file = tmp_path_factory.mktemp("made") / "studies.db"
    with open_study(_sqlite(file), "kept", directions=["maximize"], create=True) as handle:
        trial = handle.study.ask()
        trial.suggest_float("lr", 1e-5, 1e-1, log=True)
        handle.study.tell(trial, 0.5)
    return file


@pytest.fixture
def study(made: Path, tmp_path: Path) -> StorageURL:
    """A copy of `made` for a test of its own."""
    shutil.copy(made, tmp_path / "studies.db")
    return _sqlite(tmp_path / "studies.db")


@pytest.fixture(scope="module")
def site(made: Path) -> Iterator[Site]:
    """As a person starts it on their own machine."""
    with serving(_sqlite(made)) as site:
        yield site


@pytest.fixture
def public(study: StorageURL) -> Iterator[Site]:
    """On every address of the machine."""
    with serving(study, "0.0.0.0") as site:
        yield site


def _sqlite(file: Path) -> StorageURL:
    return parse_storage_url(f"sqlite:///{file}", "test")


def _names(url: StorageURL) -> list[str]:
    return [study.name for study in list_studies(url)]


# --- strangers ------------------------------------------------------------------------------------------------------------------------


def test_without_a_token_nothing_is_shown(public: Site) -> None:
    for path, method in itertools.product(READS, ("GET", "HEAD", "OPTIONS", "POST")):
        answer = public.ask(path, method)
        assert answer.status == 401, (method, path)
        assert b"kept" not in answer.body and b"bundle" not in answer.body


def test_a_wrong_token_is_refused_and_soon_no_more_is_tried(public: Site, caplog: pytest.LogCaptureFixture) -> None:
    for guess in ("y", "x", public.token[:-1], public.token + "x"):
        assert public.ask(f"/?token={guess}").status == 401
    assert public.ask("/sign-in", "POST", b"token=wrong", Content_Type="application/x-www-form-urlencoded").status == 401
    for _ in range(2):
        answer = public.ask(f"/?token={public.token}")
        assert answer.status == 429 and 0 < int(answer.headers["retry-after"]) <= 60
        assert "set-cookie" not in answer.headers
    assert [record.message for record in caplog.records if "sign-ins" in record.message] == [
        "the dashboard refuses sign-ins from 127.0.0.1 for a minute: 5 wrong ones"
    ]
    assert public.token not in caplog.text


def test_failures_are_counted_by_address_and_forgotten() -> None:
    now = [1000.0]
    sign_in = SignIn(DashboardOptions(token=TOKEN, proxies=(parse_network("10.0.0.1"),)), 8080, clock=lambda: now[0])

    def visit(address: str, token: str, said: str = "") -> str | None:
        return sign_in.with_token({"REMOTE_ADDR": address, "HTTP_X_FORWARDED_FOR": said}, token)

    for _ in range(5):
        assert visit("2001:db8::1", "wrong") is None
    with pytest.raises(TooManyFailures):
        visit("2001:db8::ffff", TOKEN)  # another address of the same machine
    assert visit("2001:db8:1::1", TOKEN)
    for number in range(5):
        visit("10.0.0.1", "wrong", said=f"203.0.113.{number}, 198.51.100.7")  # whoever stands before the proxy may invent all but the last
        visit("192.0.2.1", "wrong", said=f"203.0.113.{number}")
    with pytest.raises(TooManyFailures):
        visit("10.0.0.1", TOKEN, said="198.51.100.7")
    with pytest.raises(TooManyFailures):
        visit("192.0.2.1", TOKEN, said="198.51.100.8")  # no proxy of ours
    assert visit("10.0.0.1", TOKEN, said="198.51.100.8")
    now[0] += 61
    assert visit("192.0.2.1", TOKEN)


def test_a_token_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(public: Site) -> None:
    answer = public.ask(f"/?token={public.token}")
    assert answer.status == 303
    assert public.token not in answer.headers["location"] and b"token" not in answer.body
    assert answer.headers["cache-control"] == "no-store"
    parts = {part.strip() for part in answer.headers["set-cookie"].split(";")}
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= parts
    cookie = answer.headers["set-cookie"].partition(";")[0]
    assert public.token not in cookie
    name, _, session = cookie.partition("=")
    assert public.ask("/api/studies", Cookie=f"other={{x}}; {cookie}").json["study_summaries"][0]["study_name"] == "kept"
    assert public.ask("/api/studies", Cookie=f"{name}={session[:-1]}").status == 401
    assert public.ask("/sign-out", Cookie=cookie).headers["set-cookie"].startswith(f"{name}=; ")
    assert public.ask("/api/studies", Cookie=cookie).status == 401


def test_sessions_end() -> None:
    now = [0.0]
    sign_in = SignIn(DashboardOptions(token=TOKEN), 8080, clock=lambda: now[0])
    session = sign_in.with_token({"REMOTE_ADDR": "192.0.2.1"}, TOKEN)
    cookie = {"HTTP_COOKIE": f"autoft_dashboard_8080={session}"}
    assert sign_in.user(cookie) == "token"
    now[0] = 7 * 24 * 3600
    assert sign_in.user(cookie) is None


@pytest.mark.parametrize("goes_to", ["//evil.example", "https://evil.example", "/dashboard/../x", "/dashboard\r\nX: y", "/dashboard//evil", "javascript:x"])
def test_signing_in_never_leads_elsewhere(public: Site, goes_to: str) -> None:
    body = f"token={public.token}&next={quote(goes_to, safe='')}".encode()
    answer = public.ask("/sign-in", "POST", body, Content_Type="application/x-www-form-urlencoded")
    assert answer.status == 303
    assert answer.headers["location"].startswith("/signed-in?next=/dashboard")
    page = public.ask(f"/signed-in?next={quote(goes_to, safe='')}")
    assert b"evil.example" not in page.body and b"javascript" not in page.body


def test_other_sites_do_not_sign_visitors_in(public: Site) -> None:
    body, kind = f"token={public.token}".encode(), "application/x-www-form-urlencoded"
    for lie in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}, {"Content_Type": "text/plain"}):
        assert public.ask("/sign-in", "POST", body, **{"Content_Type": kind, **lie}).status == 403
    assert public.ask("/sign-in", "POST", b"x" * 5000, Content_Type=kind).status == 413


def test_on_this_machine_a_sign_in_can_be_asked_for(study: StorageURL) -> None:
    with serving(study, require_sign_in=True) as site:
        assert site.ask("/api/studies").status == 401
        assert site.ask("/api/studies", Cookie=site.sign_in(site.token)).status == 200
    with serving(study, token=TOKEN) as site:
        assert site.server.sign_in_url is None
        assert site.ask("/api/studies").status == 401
        assert site.ask("/api/studies", Cookie=site.sign_in(TOKEN)).status == 200


# --- passwords and proxies ------------------------------------------------------------------------------------------------------------


def test_passwords(study: StorageURL, tmp_path: Path) -> None:
    file = tmp_path / "passwords"
    store_password(file, "ann", "correct horse")
    store_password(file, "bob", "battery staple")
    store_password(file, "ann", "correct horse 2")
    assert file.stat().st_mode & 0o777 == 0o600
    assert "horse" not in file.read_text()
    with serving(study, users=read_password_file(file)) as site:
        kind = "application/x-www-form-urlencoded"
        for wrong in (b"user=ann&password=correct+horse", b"user=eve&password=battery+staple", b"user=bob&password=", b"user=&password="):
            assert site.ask("/sign-in", "POST", wrong, Content_Type=kind).status == 401
        assert site.ask("/?token=x").status == 401
        answer = site.ask("/sign-in", "POST", b"user=ann&password=correct+horse+2", Content_Type=kind)
        assert answer.status == 429, "five wrong ones were enough"
    with serving(study, users=read_password_file(file)) as site:
        answer = site.ask("/sign-in", "POST", b"user=ann&password=correct+horse+2", Content_Type=kind)
        assert answer.status == 303
        assert site.ask("/api/studies", Cookie=answer.headers["set-cookie"].partition(";")[0]).status == 200


def test_a_password_file_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "passwords"
    good = f"ann:{hash_password('correct horse')}\n"
    for text, words in (
        ("", "names nobody"),
        ("ann:correct horse\n", "line 1 is not USER"),
        (good + "bob:$2y$05$abcdefghijklmnopqrstuv\n", "line 2 is not USER"),
        (good.replace("ln=15", "ln=30"), "line 1 is not USER"),
    ):
        file.write_text(text)
        file.chmod(0o600)
        with pytest.raises(ConfigError, match=words) as caught:
            read_password_file(file)
        assert "correct horse" not in str(caught.value)
    file.write_text(good)
    for mode in (0o644, 0o604, 0o602):
        file.chmod(mode)
        with pytest.raises(ConfigError, match="chmod 600"):
            read_password_file(file)
    file.chmod(0o640)
    assert list(read_password_file(file)) == ["ann"]
    with pytest.raises(ConfigError, match="cannot read"):
        read_password_file(tmp_path / "missing")
    with pytest.raises(ConfigError, match="at least 8"):
        hash_password("1234567")


def test_only_a_proxy_of_ours_is_believed(study: StorageURL) -> None:
    header = {"X_Forwarded_User": "ann"}
    with serving(study, proxies=(parse_network("192.0.2.0/24"),), proxy_header="X-Forwarded-User") as site:
        assert site.ask("/api/studies", **header).status == 401
    with serving(study, proxies=(parse_network("127.0.0.1"),), proxy_header="X-Forwarded-User") as site:
        assert site.ask("/api/studies").status == 401
        assert site.ask("/api/studies", **{"X_Forwarded_User": " "}).status == 401
        assert site.ask("/api/studies", **header).status == 200
        assert b"proxy" in site.ask("/dashboard").body
    peers = Peers((parse_network("192.0.2.0/24"),), "X-Forwarded-User")
    assert peers.user({"REMOTE_ADDR": "::ffff:192.0.2.9", "HTTP_X_FORWARDED_USER": "ann"}) == "ann"
    with pytest.raises(ConfigError, match="--proxy"):
        DashboardOptions(proxy_header="X-Forwarded-User")
    for text in ("0.0.0.0/0", "everybody"):
        with pytest.raises(ConfigError, match="--proxy"):
            parse_network(text)


def test_a_header_with_an_underscore_is_no_header_of_a_proxy(study: StorageURL) -> None:
    """Gateways turn - into _, so that one a client invents could be taken for the proxy's."""
    with serving(study, proxies=(parse_network("127.0.0.1"),), proxy_header="X-Forwarded-User") as site:
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=30)
        connection.request("GET", "/api/studies", headers={"X_Forwarded_User": "ann"})
        assert connection.getresponse().status == 401
        connection.close()


def test_cookies_of_encrypted_visits_stay_encrypted(study: StorageURL) -> None:
    with serving(study, token=TOKEN, proxies=(parse_network("127.0.0.1"),)) as site:
        assert "; Secure" in site.ask(f"/?token={TOKEN}", X_Forwarded_Proto="https").headers["set-cookie"]
    with serving(study, token=TOKEN) as site:
        assert "; Secure" not in site.ask(f"/?token={TOKEN}", X_Forwarded_Proto="https").headers["set-cookie"]


@pytest.mark.parametrize("token", ["short", "with spaces but\nlong enough", "ünicode-ünicode-ünicode"])
def test_a_token_that_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="at least 16 printable") as caught:
        DashboardOptions(token=token)
    assert token not in str(caught.value)


# --- other sites ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.nip.io", "localhost.evil.example", "127.0.0.1@evil.example", "192.0.2.7", "", None, "[::1", "a b"]
)
def test_a_name_that_is_not_ours_is_not_answered(site: Site, host: str | None) -> None:
    for path in ("/api/studies", "/dashboard", "/health", "/sign-in"):
        answer = site.ask(path, Host=host)
        assert answer.status in (400, 421), path
        assert b"kept" not in answer.body


def test_names_that_are_ours(site: Site, public: Site, study: StorageURL) -> None:
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8080", "localhost."):
        assert site.ask("/api/studies", Host=host).status == 200
    assert public.ask("/health", Host="192.0.2.7:80").status == 200  # an address of this machine, for all we know
    assert public.ask("/health", Host="evil.example").status == 421
    with serving(study, allowed_hosts=("studies.example.org",)) as named:
        assert named.ask("/api/studies", Host="Studies.example.org:443").status == 200
        assert named.ask("/api/studies", Host="sub.studies.example.org").status == 421
    with pytest.raises(ConfigError, match="--allowed-host"):
        DashboardOptions(allowed_hosts=("https://studies.example.org",))


def test_no_page_elsewhere_is_let_in(site: Site) -> None:
    for path in READS:
        answer = site.ask(path, Origin="http://evil.example")
        assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(("method", "path", "content"), WRITES)
def test_read_only_means_that_nothing_is_written(site: Site, made: Path, method: str, path: str, content: object) -> None:
    answer = site.write(path, method, content, Origin=site.origin)
    assert answer.status == 403
    assert "read-only" in answer.json["reason"] and "--allow-edit" in answer.json["reason"]
    assert _names(_sqlite(made)) == ["kept"]


def test_read_only_reaches_down_to_the_connection(either_url: StorageURL) -> None:
    open_study(either_url, "kept", directions=["maximize"], create=True).close()
    with serving(either_url) as site, pytest.raises(optuna.exceptions.StorageInternalError):
        site.server._database.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "mine")
    assert _names(either_url) == ["kept"]


def test_with_edits_allowed_other_sites_still_cannot_write(study: StorageURL) -> None:
    with serving(study, allow_edit=True) as site:
        for lie in (
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": f"{site.origin}1"},
            {"Origin": f"http://localhost:{site.port}"},  # a page of another program on this machine has another origin too
            {"Origin": "http://127.0.0.1:1"},
            {"Sec_Fetch_Site": "cross-site"},
            {"Sec_Fetch_Site": "same-site"},
            {"Sec_Fetch_Site": "none"},
        ):
            answer = site.write("/api/studies/1", "DELETE", {}, **lie)
            assert answer.status == 403 and "another site" in answer.json["reason"], lie
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
            assert site.write("/api/studies/1/note", "PUT", {"version": 1, "body": "x"}, Content_Type=kind).status == 415
        assert _names(study) == ["kept"]
        own = {"Origin": site.origin, "Sec_Fetch_Site": "same-origin"}
        assert site.write("/api/studies/1/note", "PUT", {"version": 1, "body": "mine"}, **own).status == 204
        assert site.write("/api/studies/1", "DELETE", {}, **own).status == 204
    assert _names(study) == []


@pytest.mark.parametrize("allow_edit", [False, True])
def test_visitors_neither_migrate_nor_ask_language_models(study: StorageURL, allow_edit: bool) -> None:
    with serving(study, allow_edit=allow_edit) as site:
        for path in ("/incompatible-rdb-schema", "/incompatible-rdb-schema/", "/api/llm/trial_filter_query", "/api/llm/generate_plotly_graph"):
            for method in ("GET", "POST"):
                assert site.write(path, method, {"user_query": "x"}).status == 403, path
        meta = site.ask("/api/meta").json
        assert (meta["llm_is_available"], meta["allow_unsafe"]) == (False, False)


# --- files ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("do-not-show")
    folder = tmp_path / "artifacts"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    "path",
    [
        "/static/../index.html",
        "/static/..%2findex.html",
        "/static/%2e%2e/index.html",
        "/static/%252e%252e%252findex.html",
        "/static/..%5cindex.html",
        "/static//etc/passwd",
        "/static/%00",
        "/artifacts/1/../secret",
        "/artifacts/1/..%2fsecret",
        "/artifacts/1/%2e%2e%2fsecret",
        "/artifacts/1/1/..%2f..%2fsecret",
        "/artifacts/1/....//secret",
    ],
)
def test_paths_do_not_lead_out(study: StorageURL, artifacts: Path, path: str) -> None:
    with serving(study, artifacts=artifacts) as site:
        answer = site.ask(path)
    assert answer.status in (400, 404)
    assert b"do-not-show" not in answer.body and b"NOW LOADING" not in answer.body and b"root:" not in answer.body


@pytest.mark.parametrize(
    ("stored", "sent"),
    [
        ("text/html", "application/octet-stream"),
        ("image/svg+xml", "application/octet-stream"),
        ("application/javascript", "application/octet-stream"),
        ("text/html\r\nX-Evil: 1", "application/octet-stream"),
        ("image/png", "image/png"),
        ("text/plain", "text/plain; charset=utf-8"),
    ],
)
def test_artifacts_are_only_ever_downloads(study: StorageURL, artifacts: Path, stored: str, sent: str) -> None:
    file = artifacts.parent / "page.html"
    file.write_text("<script>alert(1)</script>")
    with open_study(study, "kept", directions=["maximize"], create=False) as handle:
        found = upload_artifact(artifact_store=FileSystemArtifactStore(artifacts), file_path=str(file), study_or_trial=handle.study, mimetype=stored)
    with serving(study, artifacts=artifacts) as site:
        answer = site.ask(f"/artifacts/1/{found}")
    if "\r" in stored:  # refused where the header is made
        assert answer.status == 500 and b"script" not in answer.body
        return
    assert answer.status == 200 and answer.body == file.read_bytes()
    assert answer.headers["content-type"] == sent
    assert answer.headers["content-disposition"].startswith("attachment")
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not [name for name in answer.headers if name.startswith("access-control") or "evil" in name]


# --- what visitors learn --------------------------------------------------------------------------------------------------------------


def test_every_answer_carries_the_headers(site: Site, public: Site) -> None:
    asked = [site.ask(path) for path in READS] + [public.ask(path) for path in READS]
    asked += [site.write("/api/studies/1", "DELETE"), site.ask("/api/studies", Host="evil.example"), site.ask("/api/studies/1?after=x")]
    for answer in asked:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["referrer-policy"] == "same-origin"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "unsafe-inline" not in answer.headers["content-security-policy"].partition("script-src")[2].partition(";")[0]
        assert "server" not in answer.headers
    assert site.ask("/api/studies").headers["cache-control"] == "no-store"
    assert site.ask("/dashboard").headers["cache-control"] == "no-store"


def test_an_error_shows_nothing_of_the_inside(site: Site, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    for path in ("/api/studies/1?after=abc%0a%1b[31m", "/csv/1?trial_ids=abc", "/api/studies/1/plot/contour", "/api/studies/99/plot/edf", "/csv/99999999999999999999"):
        answer = site.ask(path)
        assert answer.status >= 400
        for inside in (b"Traceback", b"site-packages", b"SELECT", b"sqlalchemy", b"psycopg2", b"File \""):
            assert inside not in answer.body, path
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert lines and all("\n" not in line and "\x1b" not in line for line in lines)
    assert "Traceback" not in capfd.readouterr().err


def test_the_access_log_holds_no_secret(study: StorageURL) -> None:
    log = io.StringIO()
    with serving(study, "0.0.0.0", access_log=lambda line: print(line, file=log)) as site:
        cookie = site.sign_in(site.token)
        site.ask("/api/studies?x=1", Cookie=cookie)
        site.ask("/api/%0aforged", Cookie=cookie)
        token = site.token
    lines = log.getvalue().splitlines()
    assert lines == ["127.0.0.1 - GET / 303", "127.0.0.1 token GET /api/studies 200", "127.0.0.1 token GET /api/%0Aforged 404"]
    assert token not in log.getvalue() and cookie.partition("=")[2] not in log.getvalue()


def test_options_show_no_secret() -> None:
    assert TOKEN not in repr(DashboardOptions(token=TOKEN, users={"ann": hash_password("correct horse")}))
    assert "scrypt" not in repr(DashboardOptions(users={"ann": hash_password("correct horse")}))


def test_names_cannot_be_made_part_of_a_page(study: StorageURL) -> None:
    """What optuna-dashboard's page is sent is JSON, whatever a study is called; and the CSV is a download."""
    name = "</script><script>alert(1)</script>; é.csv"
    with open_study(study, name, directions=["maximize"], create=True) as handle:
        handle.study.tell(handle.study.ask(), 1.0)
    with serving(study) as site:
        listing = site.ask("/api/studies")
        assert listing.headers["content-type"] == "application/json"
        assert json.loads(listing.body)["study_summaries"][1]["study_name"] == name
        csv = site.ask("/csv/2")
        assert csv.headers["content-type"].startswith("text/csv")
        assert csv.headers["content-disposition"].startswith("attachment")
