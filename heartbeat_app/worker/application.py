"""The Faust app, wired from the settings. Nothing connects before it starts."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import sys
import threading
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import NoReturn

import click
import faust
import mode.loop
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
)
from confluent_kafka import KafkaException
from faust.types import TP
from faust.types.auth import CredentialsT
from faust.types.web import Web
from mode import ServiceT
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    wait_random_exponential,
)

from heartbeat_app.config import Settings, load_settings
from heartbeat_app.domain.batches import Batch
from heartbeat_app.domain.excerpts import Excerpting
from heartbeat_app.exceptions import ConfigurationError, HeartbeatError, printable
from heartbeat_app.kafka.client import Admin
from heartbeat_app.kafka.topics import TopicPolicies, ensure_topic
from heartbeat_app.lane import Lane, LaneApp
from heartbeat_app.live.feed import Feed
from heartbeat_app.storage.db import errors
from heartbeat_app.storage.db.engine import Uses, make_engine
from heartbeat_app.storage.read.questions import Questions
from heartbeat_app.storage.write.ledger import PostgresLedger
from heartbeat_app.storage.write.writer import Writer
from heartbeat_app.web.access import Access
from heartbeat_app.web.connections import MOST_BODY
from heartbeat_app.web.connections import Web as GuardedWeb
from heartbeat_app.worker.maintenance import Maintenance
from heartbeat_app.worker.metrics import Metrics
from heartbeat_app.worker.watchdog import Watchdog

# Where the agents, timers, pages and commands are. Named, not searched for: Faust
# only warns about a module that cannot be imported, and skips some by their names.
MODULES = [
    "heartbeat_app.worker.agents",
    "heartbeat_app.worker.timers",
    "heartbeat_app.cli.demo",
    "heartbeat_app.cli.send",
    "heartbeat_app.cli.books",
    "heartbeat_app.cli.partitions",
    "heartbeat_app.cli.dead_letters",
    "heartbeat_app.cli.erase",
    "heartbeat_app.cli.export",
    "heartbeat_app.cli.faust_commands",
    "heartbeat_app.web.views",
    "heartbeat_app.web.live",
    "heartbeat_app.web.api",
]


# While one thread builds its text or waits for a commit, the other keeps PostgreSQL
# busy. More of them would only fight for it.
WRITING_THREADS = 2
# Questions of people that are answered at once; others wait.
ASKING_THREADS = 2
# Supervisors kill after 10 s.
STOP_SECONDS = 8.0


class HeartbeatApp(LaneApp):
    """The app with its settings, its connections and the threads that write."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        # For each writing thread one to write, one to end a session that blocks it.
        self.writer = Writer(
            make_engine(
                settings,
                application_name="heartbeat_app writer",
                pool_size=2 * WRITING_THREADS,
            )
        )
        self.reads = make_engine(
            settings, application_name="heartbeat_app reader", pool_size=4
        )
        self.reads_in_use = Uses(self.reads)
        self.questions = Questions(settings, "api", threads=ASKING_THREADS)
        self.writing = ThreadPoolExecutor(WRITING_THREADS, thread_name_prefix="writer")
        # The last write of each partition, which may still wait for its turn.
        self.writes: dict[TP, Future[list[Batch]]] = {}
        super().__init__(
            settings.kafka_group_id,
            lane=Lane(
                {settings.heartbeats_topic},
                PostgresLedger(self.reads),
                self._topic_ids,
                max_record_bytes=settings.max_record_bytes,
                large=Excerpting,
            ),
            broker=[
                f"kafka://{server}"
                for server in settings.kafka_bootstrap_servers.split(",")
            ],
            broker_credentials=credentials(settings),
            autodiscover=MODULES,
            Worker=HeartbeatWorker,
            origin="heartbeat_app",
            topic_disable_leader=False,
            producer_linger=0.005,
            producer_max_batch_size=256 * 1024,
            producer_compression_type="lz4",
            web_bind=settings.web_bind,
            web_port=settings.web_port,
            web_stats_enabled=True,
            web_application_options={"client_max_size": MOST_BODY},
            # They would serve the tables of the app, and there are none.
            web_router_enabled=False,
            web_tables_enabled=False,
        )

    async def on_stop(self) -> None:
        """Call when the worker is told to stop: then it ends, whatever hangs.

        With Kafka away Faust's producer never stops. What was not finished is read
        again after the next start, so nothing is lost by an abrupt end.
        """
        limit = threading.Timer(STOP_SECONDS, self._end_now)
        limit.daemon = True
        limit.start()
        await super().on_stop()
        # Python waits for their threads before it ends.
        self.reads_in_use.break_off()
        self.questions.end()

    def _end_now(self) -> None:
        self.log.error(
            "Did not stop within %g s (is Kafka away?): ended. Nothing is lost.",
            STOP_SECONDS,
        )
        os._exit(1)

    def on_init_dependencies(self) -> Iterable[ServiceT]:
        """The lane's services, and the watchdog, which has to see all of them."""
        return [
            self.watchdog,
            self.maintenance,
            self.feed,
            self.policies,
            *super().on_init_dependencies(),
        ]

    def _new_web(self) -> Web:
        web = GuardedWeb(self)
        access = Access(self.settings.web_token, self.settings.web_bind)
        access.protect(web.web_app)
        web.web_app.on_shutdown.append(self._end_answers)
        return web

    async def _end_answers(self, app: object) -> None:
        self.feed.end_all()
        self.questions.end()

    @cached_property
    def watchdog(self) -> Watchdog:
        """What the health pages ask."""
        return Watchdog(self, loop=self.loop, beacon=self.beacon)

    @cached_property
    def maintenance(self) -> Maintenance:
        """Roll-ups, partitions and retention."""
        return Maintenance(self.settings, loop=self.loop, beacon=self.beacon)

    @cached_property
    def metrics(self) -> Metrics:
        """What Prometheus asks for."""
        return Metrics(
            lambda: self.watchdog.health,
            lambda: self.maintenance.backlog,
            lambda: self.policies.faults,
        )

    @cached_property
    def feed(self) -> Feed:
        """What the live page is told."""
        return Feed(self, loop=self.loop, beacon=self.beacon)

    @cached_property
    def policies(self) -> TopicPolicies:
        """Whether the topics' settings suit."""
        return TopicPolicies(self, self.lane.topics, loop=self.loop, beacon=self.beacon)

    @cached_property
    def admin(self) -> Admin:
        """Kafka's admin client; connects when first asked for."""
        return Admin(self.settings)

    def _topic_ids(self, topics: Collection[str]) -> Mapping[str, str]:
        return self.admin.topic_ids(topics)

    async def on_first_start(self) -> None:
        """Call before anything connects: make the topic, as soon as Kafka is there."""
        await super().on_first_start()
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(KafkaException),
            wait=wait_random_exponential(multiplier=0.2, max=2.0),
            before_sleep=self._log_waiting,
            sleep=asyncio.sleep,
            reraise=True,
        ):
            with attempt:
                await asyncio.to_thread(ensure_topic, self.settings)

    def _log_waiting(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        self.log.warning(
            "Kafka at %s does not answer yet (KAFKA_BOOTSTRAP_SERVERS), asking again: "
            "%s",
            self.settings.kafka_bootstrap_servers,
            error.args[0].str() if isinstance(error, KafkaException) else error,
        )


class HeartbeatWorker(faust.Worker):
    """Faust's worker, which ends in a sentence where to ask again is in vain."""

    def execute_from_commandline(self) -> NoReturn:
        """Run until the end, or say in a sentence why not.

        A database that does not answer yet is waited for, later.
        """
        assert isinstance(self.app, HeartbeatApp)
        try:
            with self.app.reads.connect() as connection:
                connection.execute(_READS)
        except SQLAlchemyError as error:
            if errors.is_lasting(error):
                click.echo(
                    f"Error: {errors.explained(error, self.app.settings)}", err=True
                )
                raise SystemExit(1) from None
        super().execute_from_commandline()

    async def start(self) -> None:
        """Start, or end the process where Kafka lets this worker do nothing."""
        try:
            await super().start()
        except (HeartbeatError, *_NOT_ALLOWED) as error:
            self._end(error)

    def _end(self, error: Exception) -> NoReturn:
        # Nothing is in hand yet, and to stop in order would wait for Kafka.
        words = str(error)
        if isinstance(error, _NOT_ALLOWED):
            assert isinstance(self.app, HeartbeatApp)
            words = (
                f"Kafka at {self.app.settings.kafka_bootstrap_servers} does not let "
                f"this worker go on: {error} Allow it what docs/how-to/deployment.md "
                "lists, for the topic and for KAFKA_GROUP_ID."
            )
        click.echo(printable(f"Error: {words}"), err=True)
        sys.stdout.flush()
        os._exit(1)


# What the worker needs first.
_READS = text("SELECT FROM partition_ledger LIMIT 0")
_NOT_ALLOWED = (
    TopicAuthorizationFailedError,
    GroupAuthorizationFailedError,
    ClusterAuthorizationFailedError,
)


def credentials(settings: Settings) -> CredentialsT | None:
    """Faust's form of the Kafka security settings.

    Raises:
        ConfigurationError: A file cannot be read, or is not what it should be.
    """
    protocol = settings.kafka_security_protocol
    context = _tls(settings) if protocol.endswith("SSL") else None
    if protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=settings.kafka_sasl_username,
            password=settings.kafka_sasl_password,
            mechanism=settings.kafka_sasl_mechanism,
            ssl_context=context,
        )
    return faust.SSLCredentials(context) if context is not None else None


def _tls(settings: Settings) -> ssl.SSLContext:
    ca = settings.kafka_ssl_cafile
    certificate, key = settings.kafka_ssl_certfile, settings.kafka_ssl_keyfile
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:  # an SSLError is one, too
        raise ConfigurationError(
            f"KAFKA_SSL_CAFILE is {ca!r}; allowed is a readable file with CA "
            f"certificates (PEM): {error}"
        ) from error
    if certificate is not None:
        try:
            context.load_cert_chain(certificate, key)
        except OSError as error:
            raise ConfigurationError(
                f"KAFKA_SSL_CERTFILE is {certificate!r} and KAFKA_SSL_KEYFILE is "
                f"{key!r}; allowed are readable files with a certificate and its key "
                f"(PEM): {error}"
            ) from error
    return context


class _NoLogins(logging.Filter):
    """Leaves out what aiokafka logs of a login at level debug: PLAIN's password."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "SaslAuthenticate" not in record.getMessage()


logging.getLogger("aiokafka.conn").addFilter(_NoLogins())

# Chosen before the first loop is made; FAUST_LOOP=aio and `-L aio` stay possible.
if "FAUST_LOOP" not in os.environ:
    mode.loop.use("uvloop")

# Empty is unset; Faust reads it by itself, and takes it for a number.
if not os.environ.get("WEB_PORT", "").strip():
    os.environ.pop("WEB_PORT", None)

# What needs no database, such as `send`, needs no settings of it.
app = HeartbeatApp(load_settings(database=False))
