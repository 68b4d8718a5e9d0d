"""Settings: real variables win over `.env`, and a wrong one is named and explained."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pytest

from heartbeat_app.config import Settings, load_settings, variables
from heartbeat_app.exceptions import ConfigurationError
from heartbeat_app.storage.db.engine import connect_timeout, database_url, make_engine

PROJECT = Path(__file__).parents[2]
NOWHERE = Path("/nonexistent/.env")
REQUIRED = {
    "POSTGRESQL_USERNAME": "admin",
    "POSTGRESQL_PASSWORD": "top-secret",
    "POSTGRESQL_DATABASE": "heartbeat_db",
}


def load(environ: Mapping[str, str], file: Path = NOWHERE) -> Settings:
    return load_settings({**REQUIRED, **environ}, file)


def why_refused(environ: Mapping[str, str]) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(environ)
    return str(caught.value)


def test_defaults_point_at_the_servers_that_users_know() -> None:
    settings = load({})
    assert (settings.postgresql_host, settings.postgresql_port) == ("127.0.0.1", "5434")
    assert settings.kafka_bootstrap_servers == "127.0.0.1:9092"
    assert (settings.web_bind, settings.web_port) == ("127.0.0.1", 6066)
    assert settings.heartbeats_topic == "heartbeats"


def test_a_worker_pointed_at_real_data_invents_nobody_and_keeps_for_ever() -> None:
    settings = load({})
    assert settings.synthetic_customers == 0
    assert settings.retention_days is None
    assert settings.max_future_seconds == 300


def test_real_variables_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("WEB_PORT=7000\nKAFKA_GROUP_ID='from-file'\nHEARTBEATS_TOPIC=a\n")
    settings = load({"WEB_PORT": "8000", "HEARTBEATS_TOPIC": ""}, file)
    assert settings.web_port == 8000
    assert settings.kafka_group_id == "from-file"
    assert settings.heartbeats_topic == "heartbeats"  # an empty one unsets


def test_reads_the_environment_and_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in variables():
        monkeypatch.delenv(name, raising=False)
    Path(".env").write_text("POSTGRESQL_USERNAME=admin\nPOSTGRESQL_DATABASE=db\n")
    monkeypatch.setenv("POSTGRESQL_PASSWORD", "p")
    assert load_settings().postgresql_database == "db"


def test_an_empty_file_and_no_file_are_the_same(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("")
    assert load({}, file) == load({})


def test_blanks_around_a_value_do_not_count() -> None:
    assert load({"WEB_PORT": " 7000\n"}).web_port == 7000
    assert load({"RETENTION_DAYS": "  "}).retention_days is None


@pytest.mark.parametrize("name", sorted(REQUIRED))
@pytest.mark.parametrize("value", ["", "  ", None])
def test_what_must_be_set_is_named(name: str, value: str | None) -> None:
    environ = {k: v for k, v in REQUIRED.items() if k != name}
    if value is not None:
        environ[name] = value
    with pytest.raises(ConfigurationError, match=f"{name} is not set"):
        load_settings(environ, NOWHERE)


WRONG = {
    "POSTGRESQL_HOST": [
        ",", "a,", ",a", "a,,b", "a b", "db:5432", "a,db:5432", "[::1]", "a/b",
        "postgresql://db/x", "user@db", "a;b:1", "db1;db2", "host=db", "a%2Cb", "@",
        "/", "//", "@/", "a,/", "/" + "a" * 93, "-db", "db-", "a..b", ".", "256.1.1.1",
        "1.2.3.4.", "fe80::1%", "dbé", "a" * 64, ".".join(["a" * 60] * 5), "'db'", "*",
        ",".join("abcdefghi"),
    ],
    "POSTGRESQL_PORT": [
        "0", "65536", "-1", "5434.0", "port", "1e3", ",", "5432,", "5432,,5433", "1,0",
    ],
    "POSTGRESQL_SSLMODE": ["on", "VERIFY-FULL"],
    "KAFKA_BOOTSTRAP_SERVERS": [
        "localhost", ":9092", "a:", "a:b", "a:0", "a:65536", "a:9092,", "a:9092,b",
        "a:\u0661", "a b:9092", "a/b:9092", "kafka:a:9092", "kafka://", "kafka://a",
        "PLAINTEXT://a:9092", "http://a:9092", "kafka://a:9092/", "::1:9092", ";",
    ],
    "KAFKA_SECURITY_PROTOCOL": ["TLS", "plaintext"],
    "KAFKA_SASL_MECHANISM": ["GSSAPI", "scram-sha-256"],
    "KAFKA_SSL_CAFILE": ["/nonexistent/ca.pem", "/"],
    "KAFKA_SSL_CERTFILE": ["/nonexistent/cert.pem"],
    "KAFKA_SSL_KEYFILE": ["/nonexistent/key.pem"],
    "KAFKA_GROUP_ID": ["a b", "é", "..", "a" * 230],
    "HEARTBEATS_TOPIC": [".", "..", "a b", "a/b", "é", "a" * 250],
    "HEARTBEATS_PARTITIONS": ["0", "10001", "four"],
    "SYNTHETIC_CUSTOMERS": ["-1", "1000001", "1,000", "many"],
    "SYNTHETIC_INTERVAL_SECONDS": ["0", "0.001", "86401", "nan", "inf", "1s"],
    "SYNTHETIC_SEED": ["-1", str(2**63), "x"],
    "MAX_FUTURE_SECONDS": ["-1", "nan", "inf", "-inf", "5m"],
    "MAX_RECORD_BYTES": ["0", "4095", "4194305", "1e6"],
    "RETENTION_DAYS": ["0", "-1", "36501", "1.5", "ever"],
    "MINUTES_RETENTION_DAYS": ["0", "36501", "x"],
    "HOURS_RETENTION_DAYS": ["0", "36501", "x"],
    "DEAD_LETTERS_RETENTION_DAYS": ["0", "36501", "x"],
    "WEB_PORT": ["0", "65536", "http"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n, values in WRONG.items() for v in values]
)
def test_a_wrong_value_is_named_with_what_it_was_and_what_is_allowed(
    name: str, value: str
) -> None:
    words = why_refused({name: value})
    assert f"{name} is {value!r}; allowed is " in words
    assert re.search(r"allowed is \S+ ?\S+", words)


@pytest.mark.parametrize(
    ("hosts", "ports", "address"),
    [
        ("db", "5432", "db:5432"),
        ("a, b ,c", "5432", "a:5432, b:5432, c:5432"),
        ("a,b", "5432, 5433", "a:5432, b:5433"),
        ("::1,fe80::1%eth0,10.0.0.1", "1", "[::1]:1, [fe80::1%eth0]:1, 10.0.0.1:1"),
        ("/run/a,/run/b", "1,2", "/run/a:1, /run/b:2"),
    ],
)
def test_several_hosts_are_candidates_for_one_database(
    hosts: str, ports: str, address: str
) -> None:
    settings = load({"POSTGRESQL_HOST": hosts, "POSTGRESQL_PORT": ports})
    assert settings.postgresql_address == address
    # As libpq gets them.
    url = database_url(settings)
    dialect: Any = url.get_dialect()
    _, options = dialect().create_connect_args(url)
    got = zip(options["host"].split(","), str(options["port"]).split(","), strict=True)
    assert list(got) == settings.postgresql_servers
    assert options["target_session_attrs"] == "read-write"


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"POSTGRESQL_HOST": "a,b", "POSTGRESQL_PORT": "1,2,3"}, "3 ports, but .* 2 h"),
        ({"POSTGRESQL_PORT": "1,2"}, "2 ports, but POSTGRESQL_HOST 1 host;"),
    ],
)
def test_each_host_has_one_port(environ: dict[str, str], named: str) -> None:
    words = why_refused(environ)
    assert re.search(rf"POSTGRESQL_PORT names {named}", words)
    assert "name one port for all hosts, or one for each" in words


@pytest.mark.parametrize(("count", "seconds"), [(1, 5), (2, 3), (3, 2), (8, 2)])
def test_candidates_that_are_silent_take_a_few_seconds_together(
    count: int, seconds: int
) -> None:
    settings = load({"POSTGRESQL_HOST": ",".join("abcdefgh"[:count])})
    assert connect_timeout(settings) == seconds
    assert count * seconds <= 16


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_who_waits_for_a_connection_learns_why_there_is_none(count: int) -> None:
    """And not that the pool is used up, while another thread tries each candidate."""
    settings = load({"POSTGRESQL_HOST": ",".join("abcdefgh"[:count])})
    pool: Any = make_engine(settings, application_name="patient").pool
    assert pool.timeout() > count * connect_timeout(settings)


@pytest.mark.parametrize(
    ("value", "servers"),
    [
        ("kafka://127.0.0.1:9092", "127.0.0.1:9092"),
        ("kafka://a:1;kafka://b.example.org:2", "a:1,b.example.org:2"),
        ("kafka://a:1;b:2", "a:1,b:2"),
        ("a:1, b_c-d:2", "a:1,b_c-d:2"),
        ("[::1]:9092,[fe80::1%eth0]:9093", "[::1]:9092,[fe80::1%eth0]:9093"),
    ],
)
def test_brokers_may_be_written_as_faust_does(value: str, servers: str) -> None:
    settings = load({"KAFKA_BOOTSTRAP_SERVERS": value})
    assert settings.kafka_bootstrap_servers == servers


@pytest.mark.parametrize("value", ["a\udcffb", "a\x00b"])
def test_what_no_database_can_take_is_wrong_and_not_shown(value: str) -> None:
    words = why_refused({"POSTGRESQL_PASSWORD": value})
    assert "POSTGRESQL_PASSWORD holds a NUL or a byte that is not UTF-8" in words
    assert value not in words


def test_a_file_in_a_closed_folder_is_not_readable(tmp_path: Path) -> None:
    words = why_refused({"KAFKA_SSL_CAFILE": f"{tmp_path}/{'a' * 300}"})
    assert "allowed is the path of a readable file" in words


def test_what_needs_no_database_needs_no_settings_of_it() -> None:
    settings = load_settings({"WEB_PORT": "7000"}, NOWHERE, database=False)
    assert settings.web_port == 7000
    with pytest.raises(ConfigurationError) as caught:
        settings.require_database()
    for name in REQUIRED:
        assert f"{name} is not set" in str(caught.value)
    load({}).require_database()


def test_every_setting_that_can_be_wrong_is_tried() -> None:
    anything_goes = {
        name
        for name, setting in variables().items()
        if setting.metadata["parse"].__name__ in {"_text", "_password"}
    }
    assert set(WRONG) | anything_goes | {"WEB_TOKEN"} == set(variables())


def test_all_wrong_settings_are_named_at_once() -> None:
    words = why_refused({"WEB_PORT": "x", "RETENTION_DAYS": "y", "POSTGRESQL_PORT": ""})
    assert "WEB_PORT" in words
    assert "RETENTION_DAYS" in words
    assert "POSTGRESQL_PORT" not in words


def test_a_group_leaves_room_for_the_names_of_fausts_topics() -> None:
    longest = "a" * 229
    assert load({"KAFKA_GROUP_ID": longest}).kafka_group_id == longest
    assert load({"HEARTBEATS_TOPIC": f"{longest}-__assignor-__leader"})


@pytest.mark.parametrize("protocol", ["SASL_PLAINTEXT", "SASL_SSL"])
def test_a_login_needs_a_user_and_a_password(protocol: str) -> None:
    words = why_refused({"KAFKA_SECURITY_PROTOCOL": protocol})
    for name in ("KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"):
        assert f"{name} is not set; KAFKA_SECURITY_PROTOCOL={protocol} needs it" in (
            words
        )


def test_the_owner_is_another_role_or_the_same() -> None:
    one = load({})
    assert one.owner == one
    two = load(
        {"POSTGRESQL_OWNER_USERNAME": "owner", "POSTGRESQL_OWNER_PASSWORD": "own"}
    )
    assert (two.postgresql_username, two.postgresql_password) == ("admin", "top-secret")
    assert two.owner.postgresql_username == "owner"
    assert two.owner.postgresql_password == "own"


@pytest.mark.parametrize("given", ["USERNAME", "PASSWORD"])
def test_an_owner_needs_a_user_and_a_password(given: str) -> None:
    other = "USERNAME" if given == "PASSWORD" else "PASSWORD"
    words = why_refused({f"POSTGRESQL_OWNER_{given}": "x"})
    assert (
        f"POSTGRESQL_OWNER_{other} is not set; POSTGRESQL_OWNER_{given} needs it"
        in words
    )


@pytest.mark.parametrize("given", ["CERTFILE", "KEYFILE"])
def test_a_certificate_needs_its_key(tmp_path: Path, given: str) -> None:
    file = tmp_path / "client.pem"
    file.touch()
    other = "CERTFILE" if given == "KEYFILE" else "KEYFILE"
    words = why_refused({f"KAFKA_SSL_{given}": str(file)})
    assert f"KAFKA_SSL_{other} is not set; KAFKA_SSL_{given} needs it" in words


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ("MINUTES_RETENTION_DAYS=9", "RETENTION_DAYS is not set (for ever)"),
        ("RETENTION_DAYS=10 MINUTES_RETENTION_DAYS=9", "RETENTION_DAYS is 10"),
        ("HOURS_RETENTION_DAYS=9", "MINUTES_RETENTION_DAYS is not set (for ever)"),
        (
            "RETENTION_DAYS=5 MINUTES_RETENTION_DAYS=10 HOURS_RETENTION_DAYS=9",
            "MINUTES_RETENTION_DAYS is 10",
        ),
    ],
)
def test_what_is_coarser_is_kept_at_least_as_long(environ: str, words: str) -> None:
    found = why_refused(dict(each.split("=") for each in environ.split()))
    assert f"_RETENTION_DAYS is 9, but {words}; " in found


def test_retentions_that_go_together() -> None:
    settings = load(
        {
            "RETENTION_DAYS": "10",
            "MINUTES_RETENTION_DAYS": "10",
            "HOURS_RETENTION_DAYS": "11",
            "DEAD_LETTERS_RETENTION_DAYS": "1",
        }
    )
    assert settings.minutes_retention_days == 10
    assert load({"RETENTION_DAYS": "10"}).hours_retention_days is None
    assert load({"DEAD_LETTERS_RETENTION_DAYS": "10"}).retention_days is None


def test_an_error_ends_a_command_with_its_message_and_status_1() -> None:
    with pytest.raises(click.ClickException) as caught:
        load({"WEB_PORT": "x"})
    assert caught.value.exit_code == 1
    assert "WEB_PORT" in caught.value.format_message()


def test_passwords_are_never_shown() -> None:
    secrets = {
        "POSTGRESQL_PASSWORD": "top-secret-1",
        "POSTGRESQL_OWNER_USERNAME": "owner",
        "POSTGRESQL_OWNER_PASSWORD": "top-secret-4",
        "POSTGRESQL_READER_PASSWORD": "top-secret-2",
        "KAFKA_SASL_PASSWORD": "top-secret-3",
        "WEB_TOKEN": "top-secret-5-and-longer",
    }
    settings = load(secrets)
    assert "top-secret" not in repr(settings)
    assert "top-secret" not in why_refused({**secrets, "WEB_PORT": "x"})
    named = {n for n, setting in variables().items() if setting.metadata["secret"]}
    assert named == {n for n in variables() if re.search("PASSWORD|TOKEN", n)}
    assert named == {n for n, value in secrets.items() if "secret" in value}


@pytest.mark.parametrize(
    "token", ["short", "x" * 257, "with blanks inside it", "umlaut-äöü-0123456789"]
)
def test_a_token_is_long_and_plain(token: str) -> None:
    words = why_refused({"WEB_TOKEN": token})
    assert "WEB_TOKEN is (hidden); allowed is 16 to 256 letters" in words
    assert token not in words


def test_settings_do_not_change_after_they_were_read() -> None:
    settings = load({})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.web_port = 1  # type: ignore[misc]


def test_the_table_of_the_documents_agrees_with_the_code() -> None:
    text = (PROJECT / "docs" / "reference" / "settings.md").read_text()
    rows = re.findall(
        r"^\| `([A-Z_]+)` \| (.+) \| (.+) \| (.+) \|$", text, re.MULTILINE
    )
    expected = [
        (name, setting.metadata["help"], allowed(setting), default(setting))
        for name, setting in variables().items()
    ]
    assert rows == expected


def allowed(setting: dataclasses.Field[object]) -> str:
    try:
        setting.metadata["parse"]("")
    except ValueError as words:
        return str(words)
    raise AssertionError(f"{setting.name} may be empty")


def default(setting: dataclasses.Field[object]) -> str:
    if setting.default is dataclasses.MISSING:
        return "must be set"
    return "unset" if setting.default is None else f"`{setting.default}`"


def test_the_example_file_has_every_setting_and_no_other() -> None:
    text = (PROJECT / ".env.example").read_text()
    found = re.findall(r"^(?:# )?([A-Z_]+)=", text, re.MULTILINE)
    assert sorted(found) == sorted(variables())
