from __future__ import annotations

from pathlib import Path

import pytest

from datahound_storage.errors import SettingsError
from datahound_storage.settings import Settings, describe_url, from_environment, normalize_url

REST = "scott:hunter2@db.example:5433/jobs?options=-csearch_path%3Dhound"


@pytest.mark.parametrize(
    "scheme", ["postgres", "postgresql", "postgresql+psycopg", "POSTGRES", "PostgreSQL+Psycopg"]
)
def test_every_accepted_scheme_means_psycopg_3(scheme: str) -> None:
    assert normalize_url(f"{scheme}://{REST}") == f"postgresql://{REST}"


@pytest.mark.parametrize("blank", ["\n", "  ", "\t\r\n "])
def test_surrounding_blanks_and_newlines_are_dropped(blank: str) -> None:
    assert normalize_url(f"{blank}postgres://{REST}{blank}") == f"postgresql://{REST}"


@pytest.mark.parametrize("value", ["", " ", "\n", "\t\r\n"])
def test_a_blank_url_is_none(value: str) -> None:
    assert normalize_url(value) is None


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///jobs",
        "postgresql://",
        "postgresql://h1:1,h2:2/jobs",
        "postgresql://scott@[::1]:5432/jobs",
        "postgresql://%2Fvar%2Frun/jobs",
        "postgresql:///jobs?host=/var/run/postgresql&sslmode=require",
        "postgresql://scott:p%40ss%2Fword%3A@h/jobs%40home",
        "postgresql://scott:p?s#s@h/jobs",
    ],
)
def test_every_form_that_libpq_knows_is_taken_as_it_is(url: str) -> None:
    assert normalize_url(url) == url


REFUSED = [
    "mysql://scott:hunter2@h/jobs",
    "sqlite:///hunter2.db",
    "postgresql+psycopg2://scott:hunter2@h/jobs",
    "postgresql+asyncpg://scott:hunter2@h/jobs",
    "http://scott:hunter2@h",
    "://scott:hunter2@h/jobs",
    "postgresql:/scott:hunter2@h/jobs",
    "postgresql:scott:hunter2@h/jobs",
    "host=h user=scott password=hunter2",
    "host=h password=hunter2://x",
    "scott:hunter2@h/jobs",
    "scott:hunter2@h://jobs",
    "'postgresql://scott:hunter2@h/jobs'",
    "hunter2",
]
MALFORMED = [
    "postgresql://scott:hunter2@h:port/jobs",
    "postgresql://scott:hunter2@h:-1/jobs",
    "postgresql://scott:hunter2@h:54 32/jobs",
    "postgresql://scott:hunter2%zz@h/jobs",
    "postgresql://scott:hunter2%00@h/jobs",
    "postgresql://scott:hunter2@[::1/jobs",
    "postgresql://scott:hunter2@h/jobs?nosuch=hunter2",
    "postgresql://scott:hunter2@h/jobs?sslmode",
    "postgresql://scott:hun/ter2hunter2@h/jobs",
    "postgresql://scott:hunter2\x00@h/jobs",
    "postgresql://scott:hunter2\udcff@h/jobs",
]


@pytest.mark.parametrize("url", [*REFUSED, *MALFORMED], ids=ascii)
def test_anything_else_is_refused_by_variable_and_without_its_password(url: str) -> None:
    with pytest.raises(SettingsError, match="SOME_URL") as caught:
        normalize_url(url, "SOME_URL")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://scott:p@hunter2@h/jobs",
        "postgresql://scott:12/hunter2@h/jobs",
        "postgresql://scott:12/34@hunter2@h/jobs",
    ],
)
def test_a_password_that_is_not_encoded_never_passes_for_host_or_database(url: str) -> None:
    """It would be shown as such in messages and would go to name look-up."""
    with pytest.raises(SettingsError, match="percent-encoded") as caught:
        normalize_url(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql://scott:hunter2@h/jobs?sslmod=hunter2", "sslmod"),
        ("postgresql://h/jobs?sslmode=require&ssl=true&Port=hunter2", "Port"),
        ("postgresql://h/jobs?a_b=%20&c=hunter2", "a_b"),
    ],
)
def test_an_unknown_parameter_is_named_without_its_value(url: str, name: str) -> None:
    with pytest.raises(SettingsError, match=f"SOME_URL has the parameter '{name}'") as caught:
        normalize_url(url, "SOME_URL")
    assert "hunter2" not in str(caught.value)
    assert "port," not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://scott:hun/ter?hunter=hunter@h/jobs",
        "postgresql://scott:12/34?hunter=hunter@h/jobs",
        "postgresql://scott:12/34?hunter@h/jobs",
        "postgresql://scott@h@i?hunter=x",
        "postgresql://h/jobs?hunter2=x",
        "postgresql://h/jobs?hunter2",
    ],
)
def test_what_may_be_a_part_of_a_password_is_not_named_as_a_parameter(url: str) -> None:
    with pytest.raises(SettingsError, match="malformed") as caught:
        normalize_url(url)
    assert "hunter" not in str(caught.value)


def test_a_refusal_of_a_url_with_a_usual_scheme_names_the_scheme() -> None:
    with pytest.raises(SettingsError, match="mysql"):
        normalize_url("mysql://scott:hunter2@h/jobs")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"postgresql://{REST}", "db.example:5433/jobs"),
        ("postgresql:///jobs", "the local socket/jobs"),
        ("postgresql:///jobs?host=/run/pg&port=5433&password=hunter2", "/run/pg/jobs"),
        ("postgresql://scott:hunter2@h", "h/"),
        ("postgresql://scott:hunter2@h/a%2Fb", "h/a%2Fb"),
    ],
)
def test_a_description_shows_where_a_url_leads_and_no_more(url: str, expected: str) -> None:
    assert describe_url(url) == expected


def test_the_representation_shows_no_password() -> None:
    settings = from_environment({"DATAHOUND_STORAGE_URL": f"postgres://{REST}"})
    assert settings.url == f"postgresql://{REST}"
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings)


def test_nothing_set_means_the_files_and_safe_defaults() -> None:
    assert from_environment({}) == Settings(
        url=None, url_variable="DATABASE_URL", timezone="UTC", data_dir=Path("data")
    )


def test_the_platforms_url_serves_where_ours_is_not_set() -> None:
    settings = from_environment({"DATABASE_URL": "postgres://h/platform"})
    assert (settings.url, settings.url_variable) == ("postgresql://h/platform", "DATABASE_URL")


def test_our_url_wins_over_the_platforms() -> None:
    env = {"DATABASE_URL": "postgres://h/platform", "DATAHOUND_STORAGE_URL": "postgres://h/ours"}
    settings = from_environment(env)
    assert (settings.url, settings.url_variable) == (
        "postgresql://h/ours",
        "DATAHOUND_STORAGE_URL",
    )


@pytest.mark.parametrize("empty", ["", " \n"])
def test_our_url_set_to_nothing_rolls_back_whatever_the_platform_sets(empty: str) -> None:
    env = {"DATABASE_URL": "postgres://h/platform", "DATAHOUND_STORAGE_URL": empty}
    assert from_environment(env).url is None


def test_a_platform_url_for_another_system_is_not_looked_at_where_ours_is_set() -> None:
    env = {"DATABASE_URL": "mysql://h/x", "DATAHOUND_STORAGE_URL": "postgres://h/ours"}
    assert from_environment(env).url == "postgresql://h/ours"


def test_the_error_names_the_variable_that_was_read() -> None:
    with pytest.raises(SettingsError, match="DATABASE_URL"):
        from_environment({"DATABASE_URL": "mysql://h/x"})


@pytest.mark.parametrize(
    ("word", "expected"),
    [("1", True), (" TRUE\n", True), ("yes", True), ("on", True), ("0", False), ("what", False)],
)
def test_echo(word: str, expected: bool) -> None:
    assert from_environment({"DATAHOUND_STORAGE_ECHO": word}).echo is expected


@pytest.mark.parametrize(
    ("word", "expected"), [("1", True), ("on", True), ("0", False), ("OFF ", False), ("", False)]
)
def test_auto_upgrade(word: str, expected: bool) -> None:
    settings = from_environment({"DATAHOUND_STORAGE_AUTO_UPGRADE": word})
    assert settings.auto_upgrade is expected


def test_a_word_that_is_neither_yes_nor_no_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"DATAHOUND_STORAGE_AUTO_UPGRADE.*'maybe'"):
        from_environment({"DATAHOUND_STORAGE_AUTO_UPGRADE": "maybe"})


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "1e9", "soon", "0x10"])
def test_a_timeout_out_of_its_range_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="DATAHOUND_STORAGE_TIMEOUT_SECONDS"):
        from_environment({"DATAHOUND_STORAGE_TIMEOUT_SECONDS": text})


@pytest.mark.parametrize(("text", "expected"), [("", 5.0), (" 2.5\n", 2.5), ("0.1", 0.1)])
def test_a_timeout_in_its_range_is_taken(text: str, expected: float) -> None:
    settings = from_environment({"DATAHOUND_STORAGE_TIMEOUT_SECONDS": text})
    assert settings.operation_timeout == expected


def test_a_time_zone_label_is_taken_without_blanks() -> None:
    assert from_environment({"DATAHOUND_SCHEDULER_TZ": " US/Pacific\n"}).timezone == "US/Pacific"
    assert from_environment({"DATAHOUND_SCHEDULER_TZ": " "}).timezone == "UTC"


def test_the_process_environment_is_read_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAHOUND_STORAGE_URL", "postgres://h/from-process")
    assert from_environment().url == "postgresql://h/from-process"
