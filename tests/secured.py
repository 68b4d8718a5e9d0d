"""Kafka and PostgreSQL as they are in production: TLS, logins, rights; own CA."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from confluent_kafka.admin._scram import (
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from heartbeat_app.embedded.kafka import KafkaServer
from heartbeat_app.embedded.postgres import PostgresServer
from testkit.servers import TEMPLATE, Servers, alembic, free_port
from tests import debian_postgres

USER = "heartbeats"
GROUP = "secured"
TOPIC = "secured-beats"

# What docs/how-to/deployment.md lists: on the topic, the group, and the topics that
# Faust makes, whose names begin with the group's.
RIGHTS = (
    (ResourceType.TOPIC, TOPIC, ResourcePatternType.LITERAL, "READ"),
    (ResourceType.TOPIC, TOPIC, ResourcePatternType.LITERAL, "WRITE"),
    (ResourceType.TOPIC, TOPIC, ResourcePatternType.LITERAL, "CREATE"),
    (ResourceType.GROUP, GROUP, ResourcePatternType.LITERAL, "READ"),
    (ResourceType.TOPIC, f"{GROUP}-", ResourcePatternType.PREFIXED, "READ"),
    (ResourceType.TOPIC, f"{GROUP}-", ResourcePatternType.PREFIXED, "CREATE"),
)


@dataclass
class Secured(Servers):
    """Both servers, and what a client needs to be let in.

    Kafka's PLAINTEXT listener is the broker's own; the application is given others.
    PostgreSQL speaks TLS where Debian's can run.
    """

    folder: Path = field(default_factory=Path)
    sasl_port: int = 0
    tls_port: int = 0
    kafka_password: str = ""
    has_tls: bool = False

    @property
    def ca(self) -> str:
        """The file of the CA that made the servers' certificates."""
        return str(self.folder / "ca.pem")

    @property
    def other_ca(self) -> str:
        """The file of a CA that did not."""
        return str(self.folder / "other-ca.pem")

    def environ(self, database: str, name: str, **more: str) -> dict[str, str]:
        """The settings of an application, which logs in with SCRAM unless told so."""
        return {
            **super().environ(database, GROUP),
            "HEARTBEATS_TOPIC": TOPIC,
            "POSTGRESQL_HOST": "localhost",
            "POSTGRESQL_SSLMODE": "verify-full" if self.has_tls else "disable",
            "PGSSLROOTCERT": self.ca,
            "KAFKA_BOOTSTRAP_SERVERS": f"localhost:{self.sasl_port}",
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
            "KAFKA_SASL_USERNAME": USER,
            "KAFKA_SASL_PASSWORD": self.kafka_password,
            "KAFKA_SSL_CAFILE": self.ca,
            **more,
        }

    def with_certificate(self) -> dict[str, str]:
        """What differs where Kafka asks for a certificate instead of a password."""
        return {
            "KAFKA_BOOTSTRAP_SERVERS": f"localhost:{self.tls_port}",
            "KAFKA_SECURITY_PROTOCOL": "SSL",
            "KAFKA_SASL_USERNAME": "",
            "KAFKA_SASL_PASSWORD": "",
            "KAFKA_SSL_CERTFILE": str(self.folder / "client.pem"),
            "KAFKA_SSL_KEYFILE": str(self.folder / "client.key"),
        }


@contextmanager
def secured(folder: Path) -> Iterator[Secured]:
    """Start both servers so; stopped with the block."""
    _make_certificates(folder)
    plain, sasl, tls = free_port(), free_port(), free_port()
    password = secrets.token_hex(12)
    kafka = KafkaServer(
        folder / "kafka",
        port=plain,
        controller_port=(controller := free_port()),
        config={
            "listeners": f"PLAINTEXT://127.0.0.1:{plain},"
            f"SASL_SSL://127.0.0.1:{sasl},SSL://127.0.0.1:{tls},"
            f"CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{plain},"
            f"SASL_SSL://localhost:{sasl},SSL://localhost:{tls}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,"
            "SASL_SSL:SASL_SSL,SSL:SSL,CONTROLLER:PLAINTEXT",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(folder / "kafka.pem"),
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": str(folder / "ca.pem"),
            "listener.name.ssl.ssl.client.auth": "required",
            "ssl.principal.mapping.rules": "RULE:^.*CN=([a-z]+).*$/$1/",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
            "listener.name.sasl_ssl.plain.sasl.jaas.config": "org.apache.kafka.common."
            f'security.plain.PlainLoginModule required user_{USER}="{password}";',
            **{
                f"listener.name.sasl_ssl.scram-sha-{bits}.sasl.jaas.config": "org."
                "apache.kafka.common.security.scram.ScramLoginModule required;"
                for bits in (256, 512)
            },
            # Who has no right is refused; the broker itself has all.
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer."
            "StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        },
    )
    has_tls = debian_postgres.why_not() is None
    postgres = (
        debian_postgres.DebianPostgres(
            (folder / "server.pem", folder / "server.key"), log_statement="all"
        )
        if has_tls
        else PostgresServer(
            folder / "postgresql",
            port=free_port(),
            username="owner",
            password=secrets.token_hex(12),
            database="postgres",
            config={"log_statement": "all"},
        )
    )
    servers = Secured(
        postgres,
        kafka,
        folder=folder,
        sasl_port=sasl,
        tls_port=tls,
        kafka_password=password,
        has_tls=has_tls,
    )
    try:
        kafka.launch()
        postgres.start()
        kafka.wait_until_ready()
        _let_in(kafka, password)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PGSSLROOTCERT", servers.ca)  # for the tests' own engines
            servers.make_database(TEMPLATE)
            alembic(servers.environ(TEMPLATE, "none"), "upgrade", "head")
            yield servers
    finally:
        servers.stop()


def _make_certificates(folder: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    trustme.CA().cert_pem.write_to_path(folder / "other-ca.pem")
    # Made for this name: no other name of the same machine will do.
    server = ca.issue_cert("localhost")
    [chain] = server.cert_chain_pems
    key = _pkcs8(server.private_key_pem.bytes())
    (folder / "server.pem").write_bytes(chain.bytes())
    (folder / "server.key").write_bytes(key)
    (folder / "kafka.pem").write_bytes(key + chain.bytes())
    client = ca.issue_cert("client.example", common_name=USER)
    client.cert_chain_pems[0].write_to_path(folder / "client.pem")
    (folder / "client.key").write_bytes(_pkcs8(client.private_key_pem.bytes()))


def _pkcs8(key: bytes) -> bytes:
    """Java reads no other form."""
    return load_pem_private_key(key, password=None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )


def _let_in(kafka: KafkaServer, password: str) -> None:
    """Make the user's SCRAM passwords, and give it the rights that are documented."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    mechanisms = (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512)
    for mechanism in mechanisms:
        made = admin.alter_user_scram_credentials(
            [
                UserScramCredentialUpsertion(
                    USER, ScramCredentialInfo(mechanism, 4096), password.encode()
                )
            ]
        )
        made[USER].result(10)
    bindings = [
        AclBinding(
            kind,
            name,
            pattern,
            f"User:{USER}",
            "*",
            AclOperation[operation],
            AclPermissionType.ALLOW,
        )
        for kind, name, pattern, operation in RIGHTS
    ]
    for granted in admin.create_acls(bindings).values():
        granted.result(10)


def secrets_of(environ: Mapping[str, str]) -> dict[str, str]:
    """The values that nobody must ever read anywhere, by their variables."""
    return {
        name: value
        for name, value in environ.items()
        if value and ("PASSWORD" in name or "TOKEN" in name)
    }
