"""What may happen to PostgreSQL, and to the way there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import psycopg2

from heartbeat_app.embedded.postgres import PostgresServer
from prove.disk import SmallDisk
from prove.proxy import Proxy
from prove.scenario import scenario
from prove.standby import Pair, connect_to, settle_at
from prove.world import DATABASE, World
from testkit.oracle import BASE
from testkit.servers import Worker, free_port

SESSIONS = "application_name LIKE 'heartbeat_app%'"
END_SESSIONS = (
    f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {SESSIONS}"
)


def connect(world: World, database: str = DATABASE, **more: Any) -> Any:
    """A connection of the scenario's own, every statement a transaction."""
    connection = psycopg2.connect(
        host="127.0.0.1",
        port=world.postgres.port,
        dbname=database,
        **{
            "user": world.postgres.username,
            "password": world.postgres.password,
            **more,
        },
    )
    connection.autocommit = True
    return connection


def execute(world: World, *statements: str, **connecting: Any) -> None:
    """Run statements, each in a transaction of its own."""
    connection = connect(world, **connecting)
    try:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
    finally:
        connection.close()


@contextmanager
def holding(world: World, *statements: str, **connecting: Any) -> Iterator[Any]:
    """Another session's transaction, open with what these statements have locked."""
    connection = connect(world, **connecting)
    connection.autocommit = False
    try:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
        yield connection
    finally:
        connection.close()


def require_logged(world: World, words: str) -> None:
    """Complain unless a worker has met the fault: else nothing was proved."""
    world.require(
        any(words in worker.log() for worker in world.workers),
        f"no worker's log says {words!r}",
    )


def require_no_restart(world: World) -> None:
    """Complain if a worker could not go on by itself."""
    for worker in world.workers:
        world.require(worker.is_running(), f"{worker.log_path.name}: it ended")
    again = "worker started again by its supervisor"
    world.require(again not in world.outcome.did, "a worker had to be started again")


# The server comes and goes


@scenario("the server stopped and started, again and again", quick=True)
def database_stopped(world: World) -> None:
    world.workers_roll_up = True
    feed = world.stream()
    for _ in range(2):
        world.pause(1.0, 3.0)
        world.postgres.stop()
        world.did("PostgreSQL stopped, and started after 1 to 8 s")
        world.pause(1.0, 8.0)
        world.postgres.start()
        world.wait_for_more("it goes on")
    feed.stop()
    require_no_restart(world)


@scenario("kill -9 of the server while a batch is in its transaction", quick=True)
def database_killed(world: World) -> None:
    feed = world.stream(rate=4_000)
    for _ in range(3):
        world.pause(0.5, 2.0)
        world.wait_until(lambda: in_transaction(world), "a batch is in its transaction")
        world.postgres.kill()
        world.did("kill -9 of PostgreSQL in mid-transaction")
        world.pause(0.0, 2.0)
        world.postgres.start()
        world.wait_for_more("it goes on")
    feed.stop()
    require_no_restart(world)


def in_transaction(world: World) -> bool:
    """Whether a session of a worker's writer is in a transaction that wrote."""
    return bool(
        world.scalar(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = 'heartbeat_app writer'"
            " AND backend_xid IS NOT NULL"
        )
    )


@scenario("the database away for 100 s, while workers come and go")
def database_away_at_a_rebalance(world: World) -> None:
    feed = world.stream(workers=3, rate=500)
    world.postgres.kill()
    world.did("PostgreSQL away for 100 s")
    away = time.monotonic()
    leaving = world.workers.pop()
    world.pause(1.0, 3.0)
    world.stop_worker(leaving)
    world.did("a worker leaves meanwhile")
    # Faust gives up a rebalance's look-ups after 90 s.
    time.sleep(away + 100.0 - time.monotonic())
    world.postgres.start()
    world.wait_for_more("it goes on")
    feed.stop()
    world.wait_until_read()
    require_no_restart(world)


@scenario("all sessions of the workers terminated every second")
def sessions_terminated(world: World) -> None:
    feed = world.stream()
    for _ in range(12):
        world.pause(1.0, 1.0)
        execute(world, END_SESSIONS)
        world.did("all sessions of the workers terminated")
    world.wait_for_more("it goes on")
    feed.stop()
    require_no_restart(world)


@scenario("the server frozen (SIGSTOP) for 100 s: it neither answers nor closes")
def database_frozen(world: World) -> None:
    feed = world.stream(rate=500)
    require_ready(world)
    world.postgres.pause()
    frozen = time.monotonic()
    world.did("SIGSTOP of PostgreSQL for 100 s")
    require_not_ready(world, within_seconds=60.0, since=frozen)
    time.sleep(max(0.0, frozen + 100.0 - time.monotonic()))
    world.postgres.resume()
    world.wait_for_more("it goes on")
    feed.stop()


def require_ready(world: World) -> None:
    """Wait until all workers say that they are ready."""

    def ready() -> bool:
        return all(
            worker.get("/health/ready", seconds=2)[0] == 200 for worker in world.workers
        )

    world.wait_until(ready, "/health/ready says so")


def require_not_ready(world: World, *, within_seconds: float, since: float) -> None:
    """Complain unless all workers say in time that they are not ready."""

    def not_ready() -> bool:
        return all(
            worker.get("/health/ready", seconds=2)[0] == 503 for worker in world.workers
        )

    world.wait_until(not_ready, "/health/ready turns", seconds=within_seconds)
    world.note("/health/ready turns after", f"{time.monotonic() - since:.0f} s")


# Another server takes its place


@scenario(
    "the primary killed and its standby promoted, which lacks what was stored last; "
    "both are named as hosts"
)
def standby_promoted(world: World) -> None:
    ports = world.postgres.port, free_port()
    settle_at(
        world,
        POSTGRESQL_HOST="127.0.0.1,127.0.0.1",
        POSTGRESQL_PORT="{},{}".format(*ports),
    )
    world.ledger_went_back = True
    pair = Pair(world, ports=ports)
    feed = world.stream()
    for goes_on in (True, False):
        world.pause(1.0, 3.0)
        pair.cut_off()
        world.pause(1.0, 3.0)
        if not goes_on:  # what the standby lacks, no later beat brings to mind
            feed.stop()
            world.wait_until_read()
        stored = world.next_offsets()
        world.postgres.kill()
        world.did("kill -9 of the primary")
        world.pause(0.0, 4.0)
        promoted = pair.promote(stored)
        world.did("the standby promoted, without what was stored last")
        pair.require_storing(promoted)
        if goes_on:
            pair.follow_again()
    world.wait_until_read()
    require_logged(world, "session is read-only")
    require_no_restart(world)


@scenario(
    "an address that moves to the promoted standby, from a primary that was made "
    "read-only, and from one that was killed"
)
def address_moves(world: World) -> None:
    ports = world.postgres.port, free_port()
    address = Proxy(world.postgres.port).__enter__()
    world.at_end(address.close)
    settle_at(world, POSTGRESQL_PORT=str(address.port))
    world.ledger_went_back = True
    pair = Pair(world, ports=ports)
    feed = world.stream()
    for is_demoted in (True, False):
        world.pause(1.0, 3.0)
        pair.cut_off()
        world.pause(1.0, 3.0)
        primary = world.postgres
        stored = world.next_offsets()
        if is_demoted:
            demote(primary)
            world.did("the primary made read-only, its sessions staying open")
        else:
            primary.kill()
            world.did("kill -9 of the primary")
        world.pause(0.0, 4.0)
        promoted = pair.promote(stored)
        world.pause(0.0, 2.0)
        address.turn(pair.standby.port)
        world.did("the standby promoted, then the address moved there")
        pair.require_storing(promoted)
        world.pause(2.0, 4.0)
        primary.kill()
        if is_demoted:
            pair.follow_again()
    feed.stop()
    world.wait_until_read()
    require_logged(world, "read-only")
    require_no_restart(world)


def demote(server: PostgresServer) -> None:
    """Let a server take no writes any more, as a failover's manager fences it."""
    connection = connect_to(server)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        cursor.execute("SELECT pg_reload_conf()")
    connection.close()


# Sessions that hold something


@scenario(
    "a worker frozen inside COPY while another takes its partitions over, and thawed",
    quick=True,
)
def frozen_inside_copy(world: World) -> None:
    # So slow a way that a COPY is on it for a while, with little of it in buffers.
    with Proxy(world.postgres.port, bytes_a_second=200_000) as proxy:
        world.at_end(proxy.close)
        first = world.start_worker(POSTGRESQL_PORT=str(proxy.port))
        feed = world.feed(rate=4_000)
        feed.start()
        world.wait_until(world.consumed, "the stream has begun")
        freeze_inside_copy(world, first, proxy)
        world.did("SIGSTOP of a worker inside COPY")
        before = world.next_offsets()
        second = world.start_worker()

        def taken_over() -> bool:
            return all(o > before[p] for p, o in world.next_offsets().items())

        frozen = time.monotonic()
        world.wait_until(taken_over, "the other worker reads all partitions")
        world.note(
            "all partitions read by the other worker after",
            f"{time.monotonic() - frozen:.0f} s",
        )
        require_logged(world, "which held the ledger of this partition")
        first.resume()
        world.did("SIGCONT, another worker having its partitions")
        world.pause(2.0, 4.0)
        world.stop_worker(first)
        world.workers.remove(first)
        world.wait_for_more("it goes on")
    world.require(second.is_running(), "the other worker ended")
    feed.stop()


def freeze_inside_copy(world: World, worker: Worker, proxy: Proxy) -> None:
    """SIGSTOP while PostgreSQL waits for the rest of a COPY of that worker's."""
    inside = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY heartbeats%'"
        " AND state = 'active' AND wait_event = 'ClientRead'"
        " AND client_port = ANY(:ports)"
    )
    for _ in range(200):
        worker.pause()
        # What the system has of it arrives meanwhile; what is not yet sent does not.
        passed = -1
        while passed != proxy.passed:
            passed = proxy.passed
            world.pause(1.0, 1.0)
        if world.scalar(inside, ports=proxy.ports()):
            return
        worker.resume()
        world.pause(0.0, 0.3)
    raise AssertionError("the worker was never frozen inside COPY")


@scenario(
    "a worker frozen in its pass of the roll-ups, which one at a time may run, "
    "and thawed"
)
def frozen_in_a_pass(world: World) -> None:
    feed = world.stream(workers=2, rate=2_000)
    longest = 0.0
    for _ in range(2):
        victim = freeze_in_a_pass(world)
        world.did("SIGSTOP of a worker in its pass of the roll-ups")
        frozen = time.monotonic()
        newest = world.scalar("SELECT max(id) FROM rollup_marks")
        await_rolled_up(world, newest)
        longest = max(longest, time.monotonic() - frozen)
        victim.resume()
        world.did("SIGCONT, another worker having rolled up")
        world.pause(2.0, 4.0)
    world.note("rolled up by the other worker after", f"{longest:.0f} s")
    feed.stop()
    require_logged(world, "The roll-ups stopped short")


def await_rolled_up(world: World, newest: int) -> None:
    """Wait as long as roll-ups may take: until no mark up to this one is left."""
    left = "SELECT count(*) FROM rollup_marks WHERE id <= :newest"
    world.wait_until(
        lambda: not world.scalar(left, newest=newest),
        "another worker rolled up what was marked until then",
        seconds=60.0,
    )


def freeze_in_a_pass(world: World) -> Worker:
    """SIGSTOP of the worker whose pass has begun and has not committed."""
    pass_waits = (
        "SELECT client_port FROM pg_stat_activity"
        " WHERE application_name = 'heartbeat_app maintenance'"
        " AND wait_event_type = 'Lock' AND query LIKE '%roll_up_minutes%'"
    )
    pass_is_open = (
        "SELECT count(*) FROM pg_locks JOIN pg_stat_activity USING (pid)"
        " WHERE relation = 'rollups_lock'::REGCLASS"
        " AND mode = 'ShareRowExclusiveLock' AND granted"
        " AND state = 'idle in transaction' AND client_port = :port"
    )
    for _ in range(10):
        # A pass is over in an instant: it has to wait, for less than its time-out.
        with holding(world, "LOCK TABLE heartbeats_minute_all"):
            port = world.wait_until(
                lambda: world.scalar(pass_waits), "a pass has begun"
            )
            [victim] = [each for each in world.workers if port in world.ports_of(each)]
            victim.pause()
        # What PostgreSQL works on ends by itself; the transaction stays open.
        for _ in range(20):
            if world.scalar(pass_is_open, port=port):
                return victim
            world.pause(0.1, 0.1)
        victim.resume()
    raise AssertionError("no worker was ever frozen in a pass")


@scenario("rows of the ledger locked for 60 s by a session that cannot be ended")
def ledger_locked(world: World) -> None:
    feed = world.stream()
    execute(
        world,
        "CREATE ROLE somebody LOGIN PASSWORD 'secret'",
        "GRANT SELECT, UPDATE ON partition_ledger TO somebody",
    )
    # Workers end sessions of their own role only.
    lock = "SELECT FROM partition_ledger WHERE partition = 0 FOR UPDATE"
    with holding(world, lock, user="somebody", password="secret"):
        world.did("a row of the ledger locked by another role for 60 s")
        before = world.next_offsets()
        world.pause(30.0, 30.0)
        # What was in hand may still have gone in.
        meanwhile = world.next_offsets()
        world.pause(30.0, 30.0)
        after = world.next_offsets()
        world.require(after[0] == before[0], "the lock did not hold")
        others = [p for p in after if p and after[p] <= meanwhile[p]]
        world.require(not others, f"partitions {others} stood still with it")
    world.wait_until(
        lambda: world.next_offsets()[0] > after[0], "the partition goes on"
    )
    own = {
        "user": world.environ["POSTGRESQL_USERNAME"],
        "password": world.environ["POSTGRESQL_PASSWORD"],
    }
    with holding(world, "SELECT FROM partition_ledger FOR UPDATE", **own):
        world.did("the ledger locked by a session of the workers' role")
        world.wait_for_more("the session was ended")
    require_logged(world, "which held the ledger of this partition")
    feed.stop()
    require_no_restart(world)


@scenario("the table locked (ACCESS EXCLUSIVE) by another session for 100 s")
def table_locked(world: World) -> None:
    feed = world.stream(rate=500)
    with holding(world, "LOCK TABLE heartbeats IN ACCESS EXCLUSIVE MODE"):
        world.did("heartbeats locked for 100 s")
        world.pause(100.0, 100.0)
    world.wait_for_more("it goes on")
    feed.stop()
    require_logged(world, "LockNotAvailable")
    require_no_restart(world)


@scenario("statements that never return: every insert sleeps for an hour")
def statement_never_returns(world: World) -> None:
    feed = world.stream(rate=500)
    execute(
        world,
        "CREATE TABLE stuck ()",
        "GRANT SELECT ON stuck TO PUBLIC",
        "CREATE FUNCTION stick() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF EXISTS (SELECT FROM stuck) THEN PERFORM pg_sleep(3600); END IF;"
        " RETURN NEW; END $$",
        "CREATE TRIGGER stick BEFORE INSERT ON heartbeats"
        " FOR EACH ROW EXECUTE FUNCTION stick()",
        "INSERT INTO stuck DEFAULT VALUES",
    )
    world.did("inserts that sleep for an hour, for 90 s")
    world.pause(90.0, 90.0)
    execute(world, "DELETE FROM stuck")
    world.wait_for_more("it goes on")
    feed.stop()
    require_logged(world, "QueryCanceled")
    require_no_restart(world)


@scenario("connections that fall silent without closing")
def connection_silent(world: World) -> None:
    with Proxy(world.postgres.port) as proxy:
        worker = world.start_worker(POSTGRESQL_PORT=str(proxy.port))
        feed = world.feed(rate=1_000)
        feed.start()
        world.wait_until(world.consumed, "the stream has begun")
        for seconds in (0.0, 20.0):
            world.pause(1.0, 2.0)
            began = time.monotonic()
            proxy.silence()
            world.did("all connections silent, without being closed")
            world.pause(seconds, seconds)
            proxy.speak()
            require_not_ready(world, within_seconds=60.0, since=began)
            world.wait_for_more("it goes on")
            world.note(
                f"silent for {seconds:.0f} s, then for new ones no more",
                f"goes on after {time.monotonic() - began:.0f} s",
            )
        feed.stop()
        world.wait_until_read()
        require_no_restart(world)
        world.stop_worker(worker)


# What PostgreSQL refuses


@scenario("every statement read-only for a while, sessions staying open", quick=True)
def read_only(world: World) -> None:
    feed = world.stream()
    for _ in range(2):
        world.pause(1.0, 3.0)
        make_read_only(world)
        world.wait_for_more("it goes on")
    feed.stop()
    require_logged(world, "session is read-only")
    require_no_restart(world)


def make_read_only(world: World) -> None:
    setting = f"ALTER DATABASE {DATABASE} SET default_transaction_read_only"
    admin: dict[str, Any] = {"database": "postgres"}
    execute(world, f"{setting} = on", END_SESSIONS, **admin)
    world.did("read-only for 5 to 8 s")
    world.pause(5.0, 8.0)
    execute(world, f"{setting} = off", **admin)


@scenario("the worker's right to insert revoked for a while, table by table")
def insert_revoked(world: World) -> None:
    feed = world.stream()
    role = world.environ["POSTGRESQL_USERNAME"]
    for table in ("heartbeats", "dead_letters", "rollup_marks", "ingest_minute"):
        world.pause(1.0, 3.0)
        execute(world, f"REVOKE INSERT ON {table} FROM {role}")
        world.did("INSERT revoked for 4 to 8 s")
        world.pause(4.0, 8.0)
        execute(world, f"GRANT INSERT ON {table} TO {role}")
        world.wait_for_more("it goes on")
    feed.stop()
    require_logged(world, "InsufficientPrivilege")
    require_no_restart(world)


@scenario("a trigger that raises for every row, for a while, by one error or another")
def raising_trigger(world: World) -> None:
    feed = world.stream()
    for state in ("P0001", "22000", "23514", "XX000", "40001"):
        world.pause(1.0, 2.0)
        execute(
            world,
            "CREATE OR REPLACE FUNCTION raise_always() RETURNS trigger LANGUAGE plpgsql"
            f" AS $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$",
            "CREATE TRIGGER raise_always BEFORE INSERT ON heartbeats"
            " FOR EACH ROW EXECUTE FUNCTION raise_always()",
        )
        world.did("a trigger that raises for every row, for 3 to 6 s")
        world.pause(3.0, 6.0)
        execute(world, "DROP TRIGGER raise_always ON heartbeats")
        world.wait_for_more("it goes on")
    feed.stop()
    require_logged(world, "RaiseException")
    require_no_restart(world)


@scenario("the disk of the tables full, and freed again")
def disk_full(world: World) -> None:
    disk = SmallDisk(world, megabytes=192)
    execute(
        world,
        f"CREATE TABLESPACE small LOCATION '{disk.path}'",
        f"ALTER DATABASE {DATABASE} ALLOW_CONNECTIONS false",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        f" WHERE datname = '{DATABASE}'",
        f"ALTER DATABASE {DATABASE} SET TABLESPACE small",
        f"ALTER DATABASE {DATABASE} ALLOW_CONNECTIONS true",
        database="postgres",
    )
    feed = world.stream(rate=4_000)
    for _ in range(2):
        world.pause(1.0, 2.0)
        disk.fill()
        world.did("the disk of the tables full for 5 to 8 s")
        world.wait_until(lambda: stands_still(world), "the disk is full")
        world.pause(5.0, 8.0)
        disk.free()
        world.wait_for_more("it goes on")
    feed.stop()
    require_logged(world, "DiskFull")
    require_no_restart(world)


def stands_still(world: World) -> bool:
    """Whether nothing was stored for two seconds."""
    before = world.consumed()
    world.pause(2.0, 2.0)
    return world.consumed() == before


@scenario("the disk of the write-ahead log full: the server ends, and is started again")
def wal_disk_full(world: World) -> None:
    disk = SmallDisk(world, megabytes=128)
    world.postgres.stop()
    disk.move_here(world.postgres.home / "data" / "pg_wal")
    world.postgres.start()
    feed = world.stream(rate=4_000)
    for _ in range(2):
        world.pause(1.0, 2.0)
        disk.fill()
        world.wait_until(lambda: not world.postgres.is_running(), "the server ends")
        world.did("the disk of the write-ahead log full, until the server ended")
        world.pause(2.0, 4.0)
        disk.free()
        world.postgres.start()
        world.wait_for_more("it goes on")
    feed.stop()
    require_no_restart(world)


@scenario("all connections taken by others for a while")
def too_many_connections(world: World) -> None:
    world.postgres.stop()
    world.postgres.config["max_connections"] = "24"
    world.postgres.start()
    feed = world.stream()
    for _ in range(2):
        world.pause(1.0, 2.0)
        with ExitStack() as taken:
            deadline = time.monotonic() + world.choice.uniform(8.0, 12.0)
            while time.monotonic() < deadline:
                try:
                    connection = connect(world, "postgres")
                except psycopg2.OperationalError:
                    time.sleep(0.05)
                    continue
                taken.callback(connection.close)
                with connection.cursor() as cursor:
                    cursor.execute(END_SESSIONS)
            world.did("all connections taken by others for 8 to 12 s")
        world.wait_for_more("it goes on")
    feed.stop()
    require_logged(world, "too many clients")
    require_no_restart(world)


@scenario("rows that PostgreSQL does not take, among others in a batch", quick=True)
def rows_at_fault(world: World) -> None:
    execute(
        world,
        "ALTER TABLE heartbeats ADD CONSTRAINT somebodys"
        " CHECK (customer_id <> 'unknown')",
    )
    oracle = world.oracle
    feed = world.feed()
    for number in range(3):
        beats = [
            (f"known-{each % 97}", BASE + timedelta(days=number, seconds=each), 60)
            for each in range(5_000)
        ]
        unknown = [("unknown", when, rate) for _, when, rate in beats[::1_000]]
        records = [
            *oracle.beats(beats, partition=0),
            *oracle.beats(unknown, partition=0, refused="rejected_by_database"),
        ]
        world.choice.shuffle(records)
        feed.send_records(records)
        world.did("rows that break a constraint of the table", len(unknown))
        if number == 0:
            for _ in range(2):
                world.start_worker()
            world.wait_until(lambda: world.lag() == 0, "the first ones are read")
    feed.send_recordings()
    feed.send(5_000)
    world.wait_until_read()
    require_no_restart(world)
