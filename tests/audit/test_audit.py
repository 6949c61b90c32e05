"""How an audit is judged. The services themselves are asked by `make audit` only."""

import datetime

import pytest

from tests.audit import run
from tests.audit.run import Finding, not_accepted, read_report

TODAY = datetime.date(2026, 11, 21)
FOUND = Finding("Pillow", "9.0.0", ("PYSEC-2022-1", "CVE-2022-22817"), ("9.0.1",))
LINE = {"package": "pillow", "id": "CVE-2022-22817", "reason": "ImageMath is not used", "until": "2027-01-31"}


def test_what_a_mirror_does_not_know_was_not_audited() -> None:
    """pip-audit ends with 0 and "No known vulnerabilities found" where no advisory was ever looked up."""
    report = {"dependencies": [{"name": "a", "skip_reason": "Dependency not found on PyPI and could not be audited: a (1)"}], "fixes": []}
    assert read_report(report).asked == ()
    assert read_report(report).unknown == ("a",)


def test_findings_are_read_with_their_aliases() -> None:
    report = {
        "dependencies": [
            {"name": "Pillow", "version": "9.0.0", "vulns": [{"id": "PYSEC-2022-1", "aliases": ["CVE-2022-22817"], "fix_versions": ["9.0.1"]}]},
            {"name": "numpy", "version": "2.4.6", "vulns": []},
        ]
    }
    audit = read_report(report)
    assert audit.asked == ("Pillow", "numpy")
    assert audit.findings == (FOUND,)
    assert "9.0.1" in str(FOUND)


def test_a_finding_is_accepted_by_any_of_its_names_until_its_date() -> None:
    assert not_accepted([FOUND], [], TODAY) == [FOUND]
    assert not_accepted([FOUND], [LINE], TODAY) == []
    assert not_accepted([FOUND], [LINE | {"package": "numpy"}], TODAY) == [FOUND]
    assert not_accepted([FOUND], [LINE | {"until": "2026-11-20"}], TODAY) == [FOUND]


@pytest.mark.parametrize("missing", LINE)
def test_who_accepts_says_why_and_until_when(missing: str) -> None:
    with pytest.raises(ValueError, match="reason and until"):
        not_accepted([], [{**LINE, missing: " "}], TODAY)


@pytest.mark.parametrize(("bad", "code", "says"), [(None, 0, "NOT AUDITED"), ((), 0, "0 known"), ((FOUND,), 1, "VULNERABLE Pillow")])
def test_the_program_says_what_it_knows(
    bad: tuple[Finding, ...] | None, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "ask", lambda service: None if bad is None else run.Audit(("Pillow",), ("x",), bad))
    assert run.main() == code
    said = capsys.readouterr().out
    assert says in said
    assert bad is None or "Not audited: x" in said
