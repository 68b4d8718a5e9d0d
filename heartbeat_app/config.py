"""The settings: read once from the environment and `.env`, checked, then frozen."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from heartbeat_app.env_file import read_env_file
from heartbeat_app.exceptions import ConfigurationError

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
SECURITY_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
SASL_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


class _Invalid(ValueError):
    """What is allowed, in words that follow 'allowed is'."""


def _text(value: str) -> str:
    if not value:
        raise _Invalid("a text that is not empty")
    return value


def _password(value: str) -> str:
    """As it is: a password may begin or end with a blank."""
    return _text(value)


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        allowed = f"a whole number from {low:,} to {high:,}"
        # int() also takes 1_000 and other scripts' digits.
        if not re.fullmatch(r"[+-]?[0-9]{1,30}", value):
            raise _Invalid(allowed)
        number = int(value)
        if not low <= number <= high:
            raise _Invalid(allowed)
        return number

    return parse


def _seconds(low: float, high: int) -> Callable[[str], float]:
    def parse(value: str) -> float:
        allowed = f"a number of seconds from {low:,} to {high:,}"
        try:
            number = float(value)
        except ValueError:
            raise _Invalid(allowed) from None
        if not low <= number <= high:  # also refuses NaN
            raise _Invalid(allowed)
        return number

    return parse


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value not in allowed:
            raise _Invalid("one of " + ", ".join(allowed))
        return value

    return parse


def _topic(longest: int) -> Callable[[str], str]:
    allowed = re.compile(rf"[A-Za-z0-9._-]{{1,{longest}}}")

    def parse(value: str) -> str:
        if not allowed.fullmatch(value) or value in {".", ".."}:
            raise _Invalid(f"1 to {longest} letters, digits, '.', '_' and '-'")
        return value

    return parse


_SERVER = re.compile(r"(?:kafka://)?((?:[\w.-]+|\[[0-9A-Fa-f:.]+(?:%\w+)?\]):([0-9]+))")


def _servers(value: str) -> str:
    """As `host:port,…`; Faust's own notation, kafka://host:port;…, means the same."""
    found = [_SERVER.fullmatch(each.strip()) for each in re.split("[,;]", value)]
    servers = [each[1] for each in found if each and 0 < int(each[2]) < 65536]
    if len(servers) < len(found):
        raise _Invalid(
            "host:port or kafka://host:port, several separated by commas or semicolons"
        )
    return ",".join(servers)


# Each that is silent costs every new connection 2 s.
MOST_HOSTS = 8
# What libpq connects to in a folder, and how long Linux lets its path be.
_SOCKET = "/.s.PGSQL.65535"
_LONGEST_SOCKET = 107


def _hosts(value: str) -> str:
    """As libpq takes them: `host,host,…`, each a name, an address or a folder."""
    hosts = [each.strip() for each in value.split(",")]
    if not all(map(_is_host, hosts)):
        raise _Invalid(
            "a host's name, its IP address or a socket's folder; several candidates "
            "for the one database are separated by commas, their ports are "
            "POSTGRESQL_PORT"
        )
    if len(hosts) > MOST_HOSTS:
        raise _Invalid(f"at most {MOST_HOSTS} hosts")
    return ",".join(hosts)


_LABEL = "(?!-)[A-Za-z0-9_-]{1,63}(?<!-)"
_HOST_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*\.?")


def _is_host(value: str) -> bool:
    if value[:1] in {"/", "@"}:  # a socket's folder; an abstract one
        return (
            value.strip("/@.") != ""
            and len(os.fsencode(value + _SOCKET)) <= _LONGEST_SOCKET
        )
    with suppress(ValueError):
        ip_address(value)
        return True
    # Four numbers that are no address are no name either.
    return (
        len(value) <= 253
        and _HOST_NAME.fullmatch(value) is not None
        and re.fullmatch(r"[0-9]+(\.[0-9]+){3}\.?", value) is None
    )


def address(host: str, port: str | int) -> str:
    """A host and its port in words; the colons of IPv6 stand in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _ports(value: str) -> str:
    """As `port,port,…`."""
    try:
        ports = [_whole(1, 65535)(each.strip()) for each in value.split(",")]
    except _Invalid as allowed:
        raise _Invalid(
            f"{allowed}; one for all hosts, or one for each, separated by commas"
        ) from None
    return ",".join(map(str, ports))


def _token(value: str) -> str:
    # Printable ASCII: it travels in a header. Long: nobody shall guess it.
    if not re.fullmatch(r"[!-~]{16,256}", value):
        raise _Invalid("16 to 256 letters, digits and signs, no blanks")
    return value


def _file(value: str) -> str:
    try:
        readable = Path(value).is_file() and os.access(value, os.R_OK)
    except OSError:  # a folder on the way is closed, a name too long
        readable = False
    if not readable:
        raise _Invalid("the path of a readable file")
    return value


def _setting(
    parse: Callable[[str], Any],
    help: str,
    *,
    default: Any = dataclasses.MISSING,
    secret: bool = False,
) -> Any:
    metadata = {"parse": parse, "help": help, "secret": secret}
    if default is dataclasses.MISSING:
        return field(metadata=metadata, repr=not secret)
    return field(default=default, metadata=metadata, repr=not secret)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings; each field is the environment variable of the same name."""

    postgresql_host: str = _setting(
        _hosts,
        "Host of the database. Several, separated by commas, are candidates for the "
        "one database: the first that takes writes is used.",
        default="127.0.0.1",
    )
    postgresql_port: str = _setting(
        _ports,
        "Port of the database: one for all hosts, or one for each, separated by "
        "commas.",
        default="5434",
    )
    postgresql_username: str = _setting(
        _text, "Role of the worker and the commands; it owns nothing."
    )
    postgresql_password: str = _setting(_password, "That role's password.", secret=True)
    postgresql_database: str = _setting(_text, "Name of the database.")
    postgresql_sslmode: str = _setting(
        _one_of(*SSL_MODES), "libpq's `sslmode`.", default="prefer"
    )
    postgresql_owner_username: str | None = _setting(
        _text,
        "Role that owns the tables, for `alembic` and `erase` only; unset: "
        "`POSTGRESQL_USERNAME` owns them, too.",
        default=None,
    )
    postgresql_owner_password: str | None = _setting(
        _password, "The owner's password.", default=None, secret=True
    )
    postgresql_reader_password: str | None = _setting(
        _password,
        "Password for the SELECT-only role `heartbeat_reader` that `alembic upgrade` "
        "makes for Grafana; unset: no such role is made.",
        default=None,
        secret=True,
    )
    kafka_bootstrap_servers: str = _setting(
        _servers, "Brokers to ask first, `host:port,…`.", default="127.0.0.1:9092"
    )
    kafka_security_protocol: str = _setting(
        _one_of(*SECURITY_PROTOCOLS),
        "How to talk to the brokers.",
        default="PLAINTEXT",
    )
    kafka_sasl_mechanism: str = _setting(
        _one_of(*SASL_MECHANISMS),
        "How to log in, with a SASL protocol.",
        default="SCRAM-SHA-512",
    )
    kafka_sasl_username: str | None = _setting(
        _text, "User, with a SASL protocol.", default=None
    )
    kafka_sasl_password: str | None = _setting(
        _password, "Password, with a SASL protocol.", default=None, secret=True
    )
    kafka_ssl_cafile: str | None = _setting(
        _file,
        "CA certificates (PEM) to trust, with a TLS protocol; unset: the system's.",
        default=None,
    )
    kafka_ssl_certfile: str | None = _setting(
        _file, "Client certificate (PEM), where the brokers ask for one.", default=None
    )
    kafka_ssl_keyfile: str | None = _setting(
        _file, "The client certificate's key (PEM).", default=None
    )
    kafka_group_id: str = _setting(
        # Faust makes topics whose names begin with it, up to -__assignor-__leader.
        _topic(229),
        "Consumer group; also the Faust app's id.",
        default="heartbeat_app",
    )
    heartbeats_topic: str = _setting(
        _topic(249), "Topic that the beats come from.", default="heartbeats"
    )
    heartbeats_partitions: int = _setting(
        _whole(1, 10_000),
        "Partitions of the topic, if this application is the one that makes it.",
        default=4,
    )
    synthetic_customers: int = _setting(
        _whole(0, 1_000_000),
        "Customers to invent; 0: a worker pointed at real data invents nobody.",
        default=0,
    )
    synthetic_interval_seconds: float = _setting(
        _seconds(0.01, 86_400),
        "Seconds between an invented customer's beats.",
        default=1.0,
    )
    synthetic_seed: int | None = _setting(
        _whole(0, 2**63 - 1),
        "Seed of the invented rates; unset: other ones in every run.",
        default=None,
    )
    max_future_seconds: float = _setting(
        _seconds(0, 86_400 * 366),
        "A beat further in the future than this is refused.",
        default=300.0,
    )
    max_record_bytes: int = _setting(
        _whole(4_096, 4_194_304),
        "A record whose key, value and headers together have more bytes than this is "
        "refused, and an excerpt of it kept.",
        default=1_048_576,
    )
    retention_days: int | None = _setting(
        _whole(1, 36_500),
        "A beat older than this is refused, and dropped a day later; unset: kept for "
        "ever.",
        default=None,
    )
    minutes_retention_days: int | None = _setting(
        _whole(1, 36_500),
        "Roll-ups by minute are dropped when their month is older than this; unset: "
        "kept for ever.",
        default=None,
    )
    hours_retention_days: int | None = _setting(
        _whole(1, 36_500),
        "Roll-ups by hour are dropped when their month is older than this; unset: "
        "kept for ever.",
        default=None,
    )
    dead_letters_retention_days: int | None = _setting(
        _whole(1, 36_500),
        "A dead letter that came longer ago than this is dropped; unset: kept for "
        "ever.",
        default=None,
    )
    web_bind: str = _setting(
        _text, "Address that the worker's pages listen on.", default="127.0.0.1"
    )
    web_port: int = _setting(
        _whole(1, 65535), "Port of the worker's pages.", default=6066
    )
    web_token: str | None = _setting(
        _token,
        "What the worker's pages ask for, but `/health/…`; unset: they are open, and "
        "tell nothing personal unless `WEB_BIND` is this machine only.",
        default=None,
        secret=True,
    )

    @property
    def owner(self) -> Settings:
        """The same for migrations, which connect as the owner of the tables."""
        return dataclasses.replace(
            self,
            postgresql_username=self.postgresql_owner_username
            or self.postgresql_username,
            postgresql_password=self.postgresql_owner_password
            or self.postgresql_password,
        )

    @property
    def postgresql_servers(self) -> list[tuple[str, str]]:
        """Host and port of each candidate for the database."""
        hosts, ports = _by_host(self.postgresql_host, self.postgresql_port)
        return list(zip(hosts, ports, strict=True))

    @property
    def postgresql_address(self) -> str:
        """The candidates in words: `host:port, host:port`."""
        return ", ".join(address(host, port) for host, port in self.postgresql_servers)

    def require_database(self) -> None:
        """Raises ConfigurationError where the database's settings are missing."""
        if missing := [name for name in required() if not getattr(self, name.lower())]:
            raise _wrong_settings(map(_not_set, missing))


def variables() -> dict[str, dataclasses.Field[Any]]:
    """Every setting's field by the name of its environment variable."""
    return {f.name.upper(): f for f in dataclasses.fields(Settings)}


def required() -> list[str]:
    """Names of the variables without which there are no settings."""
    return [
        name
        for name, setting in variables().items()
        if setting.default is dataclasses.MISSING
    ]


def _by_host(hosts: str, ports: str) -> tuple[list[str], list[str]]:
    """The hosts and the port of each: one port is that of all."""
    names, numbers = hosts.split(","), ports.split(",")
    return names, numbers * len(names) if len(numbers) == 1 else numbers


def _wrong_ports(values: Mapping[str, Any]) -> Iterator[str]:
    hosts, ports = _by_host(
        *(
            values.get(name.lower(), variables()[name].default)
            for name in ("POSTGRESQL_HOST", "POSTGRESQL_PORT")
        )
    )
    if len(hosts) != len(ports):
        yield (
            f"POSTGRESQL_PORT names {len(ports)} ports, but POSTGRESQL_HOST "
            f"{len(hosts)} {'host' if len(hosts) == 1 else 'hosts'}; name one port for "
            "all hosts, or one for each"
        )


# What is made of the other is kept at least as long.
COARSER = (
    ("RETENTION_DAYS", "MINUTES_RETENTION_DAYS"),
    ("MINUTES_RETENTION_DAYS", "HOURS_RETENTION_DAYS"),
)


def _wrong_retention(values: Mapping[str, Any]) -> Iterator[str]:
    for fine, coarse in COARSER:
        kept, needed = values.get(coarse.lower()), values.get(fine.lower())
        if kept is not None and (needed is None or needed > kept):
            at_most = (
                f"{fine} is {needed}" if needed else f"{fine} is not set (for ever)"
            )
            yield (
                f"{coarse} is {kept}, but {at_most}; what is coarser must be kept at "
                "least as long"
            )


def load_settings(
    environ: Mapping[str, str] | None = None,
    env_file: Path | None = None,
    *,
    database: bool = True,
) -> Settings:
    """Read the settings; real variables win over the file's.

    Arguments:
        environ: Variables to read, the process's own unless given.
        env_file: `.env` in the working folder unless given; need not exist.
        database: False: what connects to the database may be missing, and is then
            empty; `Settings.require_database` asks for it.

    Raises:
        ConfigurationError: A variable is missing or wrong, or the file cannot be read;
            names every such variable.
    """
    real = os.environ if environ is None else environ
    found = {**read_env_file(env_file or Path(".env"), real), **real}
    values: dict[str, Any] = {}
    wrong: list[str] = []
    for name, setting in variables().items():
        value = found.get(name, "")
        if not value.strip():
            if setting.default is dataclasses.MISSING:
                values[setting.name] = ""
                if database:
                    wrong.append(_not_set(name))
            continue
        if setting.metadata["parse"] is not _password:
            value = value.strip()
        if re.search("[\x00\ud800-\udfff]", value):
            wrong.append(f"{name} holds a NUL or a byte that is not UTF-8")
            continue
        try:
            values[setting.name] = setting.metadata["parse"](value)
        except _Invalid as allowed:
            was = "(hidden)" if setting.metadata["secret"] else repr(value)
            wrong.append(f"{name} is {was}; allowed is {allowed}")
    pairs = (
        ("POSTGRESQL_OWNER_USERNAME", "POSTGRESQL_OWNER_PASSWORD"),
        ("KAFKA_SSL_CERTFILE", "KAFKA_SSL_KEYFILE"),
    )
    for name, other in (each for pair in pairs for each in (pair, pair[::-1])):
        if name.lower() in values and other.lower() not in values:
            wrong.append(f"{other} is not set; {name} needs it")
    if values.get("kafka_security_protocol", "").startswith("SASL"):
        for name in ("KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"):
            if name.lower() not in values:
                protocol = values["kafka_security_protocol"]
                wrong.append(
                    f"{name} is not set; KAFKA_SECURITY_PROTOCOL={protocol} needs it"
                )
    wrong.extend(_wrong_ports(values))
    wrong.extend(_wrong_retention(values))
    if wrong:
        raise _wrong_settings(wrong)
    return Settings(**values)


def _not_set(name: str) -> str:
    return f"{name} is not set; set it in the environment or in .env"


def _wrong_settings(wrong: Iterable[str]) -> ConfigurationError:
    return ConfigurationError("\n  ".join(["Wrong settings:", *wrong]))
