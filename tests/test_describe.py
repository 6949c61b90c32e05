"""`autoft describe` against a real HTTP server that speaks the chat-completions API and answers as it is told to."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from autoft.cli import endpoint
from autoft.cli.describe import mentions
from autoft.cli.main import main
from tests.studies import write_study

KEY = "sk-secret-0123456789"
WORDS = {"red": "warm glow", "green": "leafy hue", "blue": "like sky"}
Reply = Callable[[dict[str, Any]], tuple[int, Any]]


def asked_class(body: dict[str, Any]) -> str:
    """The class a request is about."""
    found = re.match(r"Class: (\w+)", body["messages"][1]["content"])
    assert found
    return found.group(1)


def completion(content: str | None, usage: dict[str, int] | None = None) -> dict[str, Any]:
    """What the API returns around a text."""
    message = {"role": "assistant", "content": content}
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices, "usage": usage}


def answer(name: str, *sentences: str) -> tuple[int, Any]:
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    return 200, completion(json.dumps({"class": name, "sentences": sentences}), usage)


def good(body: dict[str, Any]) -> tuple[int, Any]:
    name = asked_class(body)
    return answer(name, WORDS[name])


def failure(status: int, message: str, code: str | None = None) -> tuple[int, Any]:
    return status, {"error": {"message": message, "type": "error", "param": None, "code": code}}


class Server:
    """Answers from `replies`, one a request, then `good`; keeps what it was sent."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.models = ["m"]
        self.requests: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path == "/v1/models"
                self.send(200, {"object": "list", "data": [{"id": name, "object": "model", "created": 1, "owned_by": "o"} for name in owner.models]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner.keys.add(self.headers["Authorization"])
                if self.path != "/v1/chat/completions":
                    return self.send(404, "not here")
                owner.requests.append(body)
                return self.send(*(owner.replies.pop(0) if owner.replies else good)(body))

            def send(self, status: int, document: Any) -> None:
                content = (document if isinstance(document, str) else json.dumps(document)).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/html" if isinstance(document, str) else "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.send_header("retry-after-ms", "1")
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda request, address: None  # type: ignore[method-assign]  # the client of a test has gone
        self.host = f"127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    running = Server()
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://{running.host}/v1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield running
    running.http.shutdown()
    running.http.server_close()
    assert running.keys <= {f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), tiny_vit)


@pytest.fixture
def describe(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command into out.json; returns exit code, stdout and stderr, of which none may have the key, nor any file."""

    def run(*flags: str, out: str = "out.json") -> tuple[int, str, str]:
        code = main(["describe", str(study), "--out", str(tmp_path / out), *flags])
        said = capsys.readouterr()
        files = [path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()]
        assert [text for text in (said.out, said.err, *files) if KEY in text] == []
        return code, said.out, said.err

    return run


def written(folder: Path) -> Any:
    return json.loads((folder / "out.json").read_text(encoding="utf-8"))


def test_every_class_is_asked_for_once(server: Server, describe: Any, tmp_path: Path) -> None:
    code, out, err = describe("--model", "m", "--price-in", "2", "--price-out", "10")
    assert (code, err) == (0, "")
    assert written(tmp_path) == {name: [words] for name, words in WORDS.items()}
    assert [asked_class(body) for body in server.requests] == list(WORDS)
    assert out.splitlines() == [
        "1/3 red: warm glow",
        "2/3 green: leafy hue",
        "3/3 blue: like sky",
        f"wrote {tmp_path / 'out.json'}: 3 classes, 3 asked, 0 were there; 3 answers, 300 prompt and 21 completion tokens, cost 0.0008",
    ]


def test_what_is_asked(server: Server, describe: Any) -> None:
    assert describe("--model", "some/model")[0] == 0
    body = server.requests[0]
    assert body["model"] == "some/model"
    assert body["response_format"]["type"] == "json_schema"
    schema = body["response_format"]["json_schema"]["schema"]
    jsonschema.validate({"class": "red", "sentences": ["a"]}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"class": "green", "sentences": ["a"]}, schema)
    question = body["messages"][1]["content"]
    assert "as in 'a red square.'" in question
    assert "told apart from: green, blue." in question
    assert "at most 3 words" in question, "the model of this study reads 8 tokens"


def test_json_on_stdout(server: Server, describe: Any, tmp_path: Path) -> None:
    code, out, err = describe("--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "study": "tiny",
        "file": str(tmp_path / "out.json"),
        "classes": 3,
        "kept": 0,
        "asked": 3,
        "answers": 3,
        "prompt_tokens": 300,
        "completion_tokens": 21,
        "cost": None,
    }


def test_a_class_that_is_there_is_not_asked_for_again(server: Server, describe: Any, tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text(json.dumps({"BLUE": "as it was", "red": ["kept"]}))
    code, out, _ = describe("--model", "m")
    assert code == 0
    assert [asked_class(body) for body in server.requests] == ["green"]
    assert written(tmp_path) == {"red": ["kept"], "green": ["leafy hue"], "blue": ["as it was"]}
    assert "3 classes, 1 asked, 2 were there" in out
    code, out, _ = describe()
    assert (code, out) == (0, f"{tmp_path / 'out.json'} has all 3 classes; nothing was asked\n")
    assert len(server.requests) == 1


def test_what_is_paid_for_stays_when_the_endpoint_fails_later(server: Server, describe: Any, tmp_path: Path) -> None:
    server.replies = [good, good, lambda body: failure(401, f"Incorrect API key provided: {KEY}")]
    code, _, err = describe("--model", "m")
    assert code == 2
    assert written(tmp_path) == {"red": ["warm glow"], "green": ["leafy hue"]}
    assert err == (
        f"autoft describe: {server.host} refuses the key in OPENAI_API_KEY (401); 2 of 3 classes are in {tmp_path / 'out.json'}; the same "
        "command asks for the others (2 answers, 200 prompt and 14 completion tokens)\n"
    )
    assert describe("--model", "m")[0] == 0
    assert written(tmp_path) == {name: [words] for name, words in WORDS.items()}
    assert len(server.requests) == 4


def replies(*sentences: str, name: str = "red") -> Reply:
    return lambda body: answer(name, *sentences)


BAD_ANSWERS: dict[str, tuple[Reply, str]] = {
    "not JSON": (lambda body: (200, completion('Sure! {"class"')), "not valid JSON"),
    "empty": (lambda body: (200, completion(None)), "it is empty"),
    "no choice": (lambda body: (200, completion("") | {"choices": []}), "it is empty"),
    "another form": (lambda body: (200, completion('{"red": "warm glow"}')), "'class' is a required property"),
    "wrong class": (replies("leafy hue", name="green"), "'green' is not one of ['red']"),
    "not text": (lambda body: (200, completion('{"class": "red", "sentences": [3]}')), "3 is not of type 'string'"),
    "too many": (replies("a glow", "b glow"), "there are 2 sentences, and 1 were asked for"),
    "none": (replies(), "there are 0 sentences"),
    "blank": (replies(" "), "'' is no sentence"),
    "escape codes": (replies("warm \x1b[2J"), "is no sentence"),
    "the class's name": (replies("Red glow"), "'Red glow' uses the name of the class, 'red'"),
    "too long": (replies("a b c d e f g"), "'a b c d e f g' is too long: 9 tokens, at most 8 are read"),
}


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_a_wrong_answer_is_asked_for_again_with_what_is_wrong(case: str, server: Server, describe: Any, tmp_path: Path) -> None:
    reply, complaint = BAD_ANSWERS[case]
    server.replies = [reply]
    code, _, err = describe("--model", "m")
    assert (code, err) == (0, "")
    assert written(tmp_path) == {name: [words] for name, words in WORDS.items()}
    assert [asked_class(body) for body in server.requests] == ["red", *WORDS]
    roles = [message["role"] for message in server.requests[1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert complaint in server.requests[1]["messages"][-1]["content"]
    assert len(server.requests[2]["messages"]) == 2, "the next class starts afresh"


def test_the_same_sentence_twice_is_asked_for_again(server: Server, describe: Any, tmp_path: Path) -> None:
    server.replies = [replies("a glow", "A  glow"), *(replies("a glow", "b glow", name=name) for name in WORDS)]
    assert describe("--model", "m", "--sentences", "2")[0] == 0
    assert "twice" in server.requests[1]["messages"][-1]["content"]
    assert written(tmp_path) == {name: ["a glow", "b glow"] for name in WORDS}


def test_answers_that_stay_wrong_end_it(server: Server, describe: Any, tmp_path: Path) -> None:
    server.replies = [good, *[lambda body: (200, completion("no"))] * 4]
    code, _, err = describe("--model", "m")
    assert code == 4
    assert "model m gives no usable answer for class 'green' in 4 attempts: it is not valid JSON" in err
    assert "1 of 3 classes are in" in err
    assert [len(body["messages"]) for body in server.requests] == [2, 2, 4, 6, 8], "every complaint stays in the conversation"
    assert written(tmp_path) == {"red": ["warm glow"]}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_endpoint_is_asked_again(status: int, server: Server, describe: Any, tmp_path: Path) -> None:
    server.replies = [lambda body: failure(status, "busy")] * 2
    code, out, _ = describe("--model", "m")
    assert code == 0
    assert len(server.requests) == 5
    assert "3 answers, 300 prompt" in out
    assert written(tmp_path) == {name: [words] for name, words in WORDS.items()}


FAILURES: dict[str, tuple[Reply, int, str]] = {
    "key": (lambda body: failure(401, f"Incorrect API key provided: {KEY}"), 2, "HOST refuses the key in OPENAI_API_KEY (401)"),
    "forbidden": (lambda body: failure(403, "region"), 2, "HOST refuses the key in OPENAI_API_KEY (403)"),
    "model": (
        lambda body: failure(404, "The model `m` does not exist", "model_not_found"),
        2,
        "--model m: there is no such model at HOST: The model `m` does not exist",
    ),
    "no API": (lambda body: (404, "<h1>?</h1>"), 2, "OPENAI_BASE_URL: there is no chat-completions API at HOST (404); does its path end in /v1?"),
    "limit": (lambda body: failure(429, "quota\nused up"), 4, "HOST allows no more requests now (429, 4 retries): quota used up"),
    "bad request": (lambda body: failure(400, f"no json_schema for {KEY}"), 4, "--model m: HOST answered 400: no json_schema for ***"),
    "broken": (lambda body: failure(500, "oh"), 4, "--model m: HOST answered 500: oh"),
    "a page": (lambda body: (200, "<h1>hello</h1>"), 4, "what HOST answers is no chat completion; does OPENAI_BASE_URL have its path (/v1, as a rule)?"),
    "other JSON": (lambda body: (200, {"a": 1}), 4, "what HOST answers is no chat completion"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failing_endpoint_is_one_line(case: str, server: Server, describe: Any, tmp_path: Path) -> None:
    reply, wanted, text = FAILURES[case]
    server.replies = [reply] * 20
    code, out, err = describe("--model", "m")
    assert (code, out) == (wanted, "")
    assert err.startswith(f"autoft describe: {text.replace('HOST', server.host)}")
    assert err.count("\n") == 1
    assert not (tmp_path / "out.json").exists()


def test_without_a_model_the_only_one_is_taken(server: Server, describe: Any) -> None:
    assert describe()[0] == 0
    assert {body["model"] for body in server.requests} == {"m"}


def test_without_a_model_several_are_listed(server: Server, describe: Any) -> None:
    server.models = ["b", "a"]
    assert describe() == (2, "", f"autoft describe: --model is missing; the models at {server.host} are a, b\n")


@pytest.mark.parametrize("value", [None, "", "  "])
def test_without_a_key_the_variable_is_named(value: str | None, server: Server, describe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    if value is not None:
        monkeypatch.setenv("OPENAI_API_KEY", value)
    code, _, err = describe("--model", "m")
    assert code == 2
    assert err.startswith("autoft describe: OPENAI_API_KEY is not set")
    assert err.count("\n") == 1


def test_a_key_that_cannot_be_sent_is_not_shown(describe: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-geheim-ä")
    code, _, err = describe("--model", "m")
    assert code == 2
    assert "OPENAI_API_KEY has a character that cannot be sent" in err
    assert "geheim" not in err


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "http://host:port/v1", "http://[::1"])
def test_an_address_that_is_none(url: str, server: Server, describe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    code, _, err = describe("--model", "m")
    assert (code, err) == (2, "autoft describe: OPENAI_BASE_URL is no address; it looks like http://127.0.0.1:8000/v1\n")


def test_a_refused_connection_is_one_line(server: Server, describe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MAX_RETRIES", 0)
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://user:{KEY}@127.0.0.1:9/v1")
    code, _, err = describe("--model", "m")
    assert code == 4
    assert re.fullmatch(r"autoft describe: 127\.0\.0\.1:9 cannot be reached: .*refused; set OPENAI_BASE_URL to change it\n", err)


def test_an_endpoint_that_does_not_answer(server: Server, describe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MAX_RETRIES", 1)
    monkeypatch.setattr(endpoint, "SECONDS", 0.2)
    released = threading.Event()
    server.replies = [lambda body: (released.wait(10), good(body))[1]] * 2  # type: ignore[func-returns-value]
    code, _, err = describe("--model", "m")
    released.set()
    assert (code, err) == (4, f"autoft describe: {server.host} did not answer within 0.2 s, 2 times in a row\n")


def test_an_endpoint_that_counts_no_tokens(server: Server, describe: Any) -> None:
    server.replies = [lambda body: (200, {**good(body)[1], "usage": None})] * 3
    code, out, _ = describe("--model", "m", "--price-in", "1", "--price-out", "1")
    assert code == 0
    assert out.splitlines()[-1].endswith("3 answers; the endpoint does not say how many tokens")


def test_the_key_is_nowhere_in_a_process_of_its_own(server: Server, study: Path, tmp_path: Path) -> None:
    """Even where the client's own log is asked for."""
    import os

    server.replies = [lambda body: failure(429, f"slow down, {KEY}"), good, lambda body: failure(400, f"bad {KEY}")]
    run = subprocess.run(
        [sys.executable, "-m", "autoft.cli.main", "describe", str(study), "--out", "out.json", "--model", "m"],
        cwd=tmp_path, env={**os.environ, "OPENAI_LOG": "debug", "PYTHONPATH": str(Path(__file__).parents[1])}, capture_output=True, text=True, check=False,
    )
    assert run.returncode == 4, run.stderr
    assert "answered 400: bad ***" in run.stderr
    texts = [run.stdout, run.stderr, *(path.read_text() for path in tmp_path.iterdir())]
    assert [text for text in texts if KEY in text] == []
    assert len(texts) == 3


# Without a language model


def test_from_a_file(server: Server, describe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    source = tmp_path / "source.json"
    source.write_text(json.dumps({"2": "like  sky", "Green": ["leafy hue", "b"], "red": "warm glow"}))
    code, out, _ = describe("--from", str(source))
    assert (code, out) == (0, f"wrote {tmp_path / 'out.json'}: 3 classes from {source}; nothing was asked\n")
    assert written(tmp_path) == {"red": ["warm glow"], "green": ["leafy hue", "b"], "blue": ["like sky"]}
    assert list(written(tmp_path)) == ["red", "green", "blue"]
    assert server.requests == []
    assert describe("--from", str(source))[0] == 0, "what is there is the same"
    source.write_text(json.dumps({"2": "other", "Green": "leafy hue", "red": "warm glow"}))
    code, _, err = describe("--from", str(source))
    assert code == 2
    assert "out.json exists already and holds something else" in err


def test_a_file_that_does_not_fit_is_not_written(describe: Any, tmp_path: Path) -> None:
    source = tmp_path / "source.json"
    for document, text in (
        ({"red": "a", "gren": "b", "blue": "c"}, "no description of 1 of the study's 3 classes: green"),
        ({"red": "a", "green": "a b c d e f g", "blue": "c"}, "green: 'a b c d e f g' has 9"),
    ):
        source.write_text(json.dumps(document))
        code, _, err = describe("--from", str(source))
        assert code == 2
        assert err.startswith("autoft describe: --from")
        assert text in err
        assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--from", "a.json", "--model", "m"), "--from takes descriptions from a file"),
        (("--price-in", "1"), "--price-in and --price-out go together"),
    ],
)
def test_flags_that_do_not_go_together(flags: tuple[str, ...], text: str, describe: Any) -> None:
    code, _, err = describe(*flags)
    assert code == 2
    assert text in err


def test_nothing_is_asked_if_the_place_is_wrong(server: Server, describe: Any, tmp_path: Path) -> None:
    for out, content, text in (
        ("none/out.json", None, "must be a file in a folder that exists"),
        (".", None, "must be a file in a folder that exists"),
        ("other.json", {"cow": "a"}, "keys that are no class of the study: 'cow'"),
        ("other.json", {"red": "a b c d e f g"}, "--out: 1 of 1 sentences do not fit"),
        ("other.json", "{", "not valid JSON"),
    ):
        if content is not None:
            (tmp_path / out).write_text(content if isinstance(content, str) else json.dumps(content))
        before = (tmp_path / out).read_bytes() if content is not None else b""
        code, _, err = describe("--model", "m", out=out)
        assert code == 2
        assert text in err
        assert content is None or (tmp_path / out).read_bytes() == before
    assert server.requests == []


def test_mentions() -> None:
    assert mentions("Two GUIDE-dogs on a lead", "guide_dog")
    assert mentions("boxes", "box")
    assert not mentions("a hotdog stand", "dog")
    assert not mentions("reddish", "red")
