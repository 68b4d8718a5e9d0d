"""docker-compose.yml keeps what docs/how-to/deployment.md promises."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from heartbeat_app import config
from heartbeat_app.embedded.kafka_jars import KAFKA_VERSION
from heartbeat_app.embedded.postgres_home import installed_programs
from tests.deploy import composefile, containers, dockerfile

SEED_ENV = {
    "POSTGRESQL_USERNAME": "admin",
    "POSTGRESQL_PASSWORD": "pa$$ word",
    "POSTGRESQL_DATABASE": "heartbeat_db",
}
LONG_RUNNING = {
    "kafka", "postgresql", "worker", "kafka-ui", "grafana", "prometheus", "disk",
}  # fmt: skip
ONE_SHOT = {"migrate", "passwords", "web-token"}


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return composefile.load(SEED_ENV)


@pytest.fixture(scope="module")
def services(project: dict[str, Any]) -> dict[str, Any]:
    found = project["services"]
    assert isinstance(found, dict)
    return found


def test_the_file_follows_the_compose_specification(project: dict[str, Any]) -> None:
    """The schema is schema/compose-spec.json of compose-go 2.13.0, which Compose uses.

    Its licence (Apache 2.0) lies beside it.
    """
    schema = json.loads(
        (Path(__file__).parent / "schema" / "compose-spec.json").read_text()
    )
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    assert [e.message for e in validator(schema).iter_errors(project)] == []


def test_three_settings_are_enough(services: dict[str, Any]) -> None:
    assert set(services) == LONG_RUNNING | ONE_SHOT
    assert services["worker"]["environment"]["SYNTHETIC_CUSTOMERS"] == "1000"


@pytest.mark.parametrize("name", SEED_ENV)
def test_a_missing_setting_is_named(name: str) -> None:
    environ = {key: value for key, value in SEED_ENV.items() if key != name}
    with pytest.raises(composefile.MissingVariable, match=f"{name}: set it in .env"):
        composefile.load(environ)


def test_ports_are_the_known_ones_and_on_this_machine_only(
    services: dict[str, Any],
) -> None:
    published = {
        name: service["ports"]
        for name, service in services.items()
        if "ports" in service
    }
    assert published == {
        "kafka": ["127.0.0.1:9092:9092"],
        "postgresql": ["127.0.0.1:5434:5432"],
        "worker": ["127.0.0.1:6066:6066"],
        "kafka-ui": ["127.0.0.1:8080:8080"],
        "grafana": ["127.0.0.1:3000:3000"],
        "prometheus": ["127.0.0.1:9090:9090"],
    }


def test_kafka_tells_each_side_an_address_that_it_can_reach(
    services: dict[str, Any],
) -> None:
    kafka = services["kafka"]["environment"]
    advertised = dict(
        listener.split("://")
        for listener in kafka["KAFKA_ADVERTISED_LISTENERS"].split(",")
    )
    assert advertised == {"INTERNAL": "kafka:29092", "HOST": "localhost:9092"}
    for name, variable in (
        ("worker", "KAFKA_BOOTSTRAP_SERVERS"),
        ("kafka-ui", "KAFKA_CLUSTERS_0_BOOTSTRAPSERVERS"),
    ):
        assert services[name]["environment"][variable] == advertised["INTERNAL"]


def test_what_must_survive_lies_on_named_volumes(project: dict[str, Any]) -> None:
    services = project["services"]
    mounted = {
        volume.removesuffix(":ro")
        for service in services.values()
        for volume in service.get("volumes", [])
        if not volume.startswith("./")
    }
    assert mounted == {
        "kafka-data:" + services["kafka"]["environment"]["KAFKA_LOG_DIRS"],
        # Since version 18 the image's volume is the folder above the data.
        "postgresql-data:/var/lib/postgresql",
        "grafana-data:/var/lib/grafana",
        "prometheus-data:/prometheus",
        f"web-token:{containers.TOKEN_FOLDER}",
        *(f"{Path(path).name}:{path}" for path in containers.PASSWORD_FOLDERS),
    }
    assert set(project["volumes"]) == {volume.split(":")[0] for volume in mounted}


def test_files_that_are_mounted_exist_and_cannot_be_changed(
    services: dict[str, Any],
) -> None:
    for service in services.values():
        for volume in service.get("volumes", []):
            if volume.startswith("./"):
                source, _, mode = volume.split(":")
                assert (composefile.PROJECT / source).exists(), volume
                assert mode == "ro", volume


def test_each_service_waits_for_what_it_needs(services: dict[str, Any]) -> None:
    waits = {
        (name, other): how["condition"]
        for name, service in services.items()
        for other, how in service.get("depends_on", {}).items()
    }
    assert waits == {
        ("postgresql", "passwords"): "service_completed_successfully",
        ("migrate", "postgresql"): "service_healthy",
        ("worker", "kafka"): "service_healthy",
        ("worker", "migrate"): "service_completed_successfully",
        ("worker", "web-token"): "service_completed_successfully",
        ("prometheus", "web-token"): "service_completed_successfully",
        ("kafka-ui", "kafka"): "service_healthy",
        ("grafana", "migrate"): "service_completed_successfully",
    }
    assert not re.search(r"\bsleep\b", composefile.COMPOSE_FILE.read_text())


def test_each_service_that_stays_says_whether_it_works(
    services: dict[str, Any],
) -> None:
    with_check = {n for n in services if services[n].get("healthcheck", {}).get("test")}
    assert with_check == LONG_RUNNING - {"worker"}
    assert dockerfile.health_check(), "the worker's is in the image"
    for name in ONE_SHOT:  # theirs would ask for the worker's page
        assert services[name]["healthcheck"] == {"disable": True}


def test_only_the_one_shots_are_not_started_again(services: dict[str, Any]) -> None:
    assert {name: service["restart"] for name, service in services.items()} == {
        **dict.fromkeys(LONG_RUNNING, "unless-stopped"),
        **dict.fromkeys(ONE_SHOT, "no"),
    }


def test_no_service_may_do_more_than_it_needs(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.keys() & {
            "cap_add",
            "devices",
            "ipc",
            "network_mode",
            "pid",
            "privileged",
        }, name
        assert "docker.sock" not in json.dumps(service), name
        # Kafka's image writes below /opt/kafka; the compose file says so.
        assert service.get("read_only", False) is (name != "kafka"), name


def test_the_pages_without_a_login_reach_no_further(services: dict[str, Any]) -> None:
    assert (
        services["kafka-ui"]["networks"] == services["kafka"]["networks"] == ["broker"]
    )
    assert services["kafka-ui"]["environment"]["KAFKA_CLUSTERS_0_READONLY"] == "true"
    assert services["grafana"]["networks"] == ["database", "metrics"]
    # Prometheus asks no login of who finds it, and can ask what its network has.
    assert services["prometheus"]["networks"] == ["metrics"]
    assert services["disk"]["networks"] == ["metrics"]


def test_servers_have_the_versions_that_the_tests_use(services: dict[str, Any]) -> None:
    postgres = installed_programs() / "postgres"
    version = subprocess.run([postgres, "--version"], check=True, capture_output=True)
    assert b"(PostgreSQL) 18." in version.stdout
    assert services["postgresql"]["image"] == "postgres:18"
    assert services["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"


def test_images_are_pinned(services: dict[str, Any]) -> None:
    for name in LONG_RUNNING - {"worker"}:
        tag = services[name]["image"].partition(":")[2]
        assert re.match(r"v?\d", tag), services[name]["image"]


def test_alerts_go_where_the_environment_says() -> None:
    services = composefile.load(SEED_ENV | {"ALERT_WEBHOOK_URL": "https://here/"})
    grafana = services["services"]["grafana"]["environment"]
    assert grafana["ALERT_WEBHOOK_URL"] == "https://here/"
    unset = composefile.load(SEED_ENV)["services"]["grafana"]["environment"]
    assert "ALERT_WEBHOOK_URL-is-not-set" in unset["ALERT_WEBHOOK_URL"]


def test_the_token_of_the_environment_reaches_who_needs_it(
    services: dict[str, Any],
) -> None:
    with_token = composefile.load(SEED_ENV | {"WEB_TOKEN": "a token"})["services"]
    for name in ("worker", "prometheus"):
        assert with_token[name]["environment"]["WEB_TOKEN"] == "a token"
        assert "WEB_TOKEN" not in services[name]["environment"]


def test_only_who_makes_the_token_can_change_it(services: dict[str, Any]) -> None:
    """And nobody has it but the two that need it."""
    mounted = {
        name: volume
        for name, service in services.items()
        for volume in service.get("volumes", [])
        if volume.startswith("web-token:")
    }
    at = f"web-token:{containers.TOKEN_FOLDER}"
    assert mounted == {"web-token": at, "worker": f"{at}:ro", "prometheus": f"{at}:ro"}


def test_no_password_is_written_down() -> None:
    services = yaml.safe_load(composefile.COMPOSE_FILE.read_text())["services"]
    for name, service in services.items():
        for variable, value in service.get("environment", {}).items():
            if "PASSWORD" in variable:
                assert value.startswith("${"), f"{variable} of {name}"


def test_only_who_makes_a_password_can_change_it(services: dict[str, Any]) -> None:
    """And nobody has it but those that need it."""
    mounted = {
        (name, volume)
        for name, service in services.items()
        for volume in service.get("volumes", [])
        if "-password:" in volume
    }
    owner, reader = (f"{Path(p).name}:{p}" for p in containers.PASSWORD_FOLDERS)
    assert mounted == {
        ("passwords", owner), ("passwords", reader),
        ("postgresql", f"{owner}:ro"),
        ("migrate", f"{owner}:ro"), ("migrate", f"{reader}:ro"),
        ("grafana", f"{reader}:ro"),
    }  # fmt: skip


def test_each_role_has_a_password_of_its_own(services: dict[str, Any]) -> None:
    """Without one in `.env` no other role's is taken for it."""
    shared = SEED_ENV["POSTGRESQL_PASSWORD"]
    for name in ("postgresql", "grafana", "passwords"):
        assert shared not in services[name].get("environment", {}).values(), name
    given = services["migrate"]["environment"]
    assert given["POSTGRESQL_OWNER_PASSWORD"] == ""
    assert given["POSTGRESQL_READER_PASSWORD"] == ""
    assert given["POSTGRESQL_PASSWORD"] == shared
    own = SEED_ENV | {"POSTGRESQL_READER_PASSWORD": "own"}
    services = composefile.load(own)["services"]
    for name in ("migrate", "grafana"):
        assert services[name]["environment"]["POSTGRESQL_READER_PASSWORD"] == "own"


def test_grafana_answers_to_its_own_name_only(services: dict[str, Any]) -> None:
    grafana = services["grafana"]["environment"]
    assert grafana["GF_SERVER_DOMAIN"] == "localhost"
    assert grafana["GF_SERVER_ENFORCE_DOMAIN"] == "true"


def test_the_owner_is_another_role_than_the_workers() -> None:
    for environ, user, password in (
        (SEED_ENV, "heartbeat_owner", ""),
        (
            SEED_ENV
            | {"POSTGRESQL_OWNER_USERNAME": "o", "POSTGRESQL_OWNER_PASSWORD": "p"},
            "o",
            "p",
        ),
    ):
        services = composefile.load(environ)["services"]
        server = services["postgresql"]["environment"]
        migrate = services["migrate"]["environment"]
        assert (server["POSTGRES_USER"], server["POSTGRES_PASSWORD"]) == (
            user,
            password,
        )
        assert migrate["POSTGRESQL_OWNER_USERNAME"] == user
        assert migrate["POSTGRESQL_OWNER_PASSWORD"] == password
        worker = services["worker"]["environment"]
        assert not {n for n in worker if "OWNER" in n or "READER" in n}
        assert worker["POSTGRESQL_USERNAME"] == "admin"


def test_the_application_is_given_its_own_settings_and_no_others(
    services: dict[str, Any],
) -> None:
    everything = composefile.load(dict.fromkeys(config.variables(), "set"))
    for name in ("migrate", "worker"):
        given = everything["services"][name]["environment"]
        assert given.keys() <= config.variables().keys()
        # Where the servers are, the network says: a .env for the host's ports must not.
        assert "set" not in {
            value
            for variable, value in given.items()
            if variable.endswith(("_HOST", "_PORT", "_SERVERS", "_BIND"))
        }


def test_what_is_not_set_is_left_to_the_application(services: dict[str, Any]) -> None:
    assert "RETENTION_DAYS" not in services["worker"]["environment"]
    with_retention = composefile.load(SEED_ENV | {"RETENTION_DAYS": "30"})["services"]
    # The migration tells the database, the worker refuses what is older.
    for name in ("migrate", "worker"):
        assert with_retention[name]["environment"]["RETENTION_DAYS"] == "30"


def test_the_pages_of_the_worker_can_be_reached_from_outside_of_its_container(
    services: dict[str, Any],
) -> None:
    environment = services["worker"]["environment"]
    assert environment["WEB_BIND"] == "0.0.0.0"
    (port,) = services["worker"]["ports"]
    assert port.endswith(":" + environment["WEB_PORT"])


def test_the_documentation_names_every_variable_that_compose_reads() -> None:
    file = yaml.safe_load(composefile.COMPOSE_FILE.read_text())
    read = set(re.findall(r"(?<!\$)\$\{(\w+)", composefile.COMPOSE_FILE.read_text()))
    for service in file["services"].values():
        read |= {n for n, v in service.get("environment", {}).items() if v is None}
    documentation = (
        composefile.PROJECT / "docs" / "how-to" / "deployment.md"
    ).read_text()
    assert read - set(re.findall(r"[A-Z_]{2,}", documentation)) == set()


def test_the_worker_is_given_time_to_stop(services: dict[str, Any]) -> None:
    # Docker's own 10 s is what the worker may take; PostgreSQL's docs call 90 s short.
    for name in ("kafka", "postgresql", "worker"):
        assert int(services[name]["stop_grace_period"].removesuffix("s")) >= 30, name


def test_postgresql_keeps_records_out_of_its_log(services: dict[str, Any]) -> None:
    # The shell is given the command's words, and passes them on.
    assert 'exec docker-entrypoint.sh "$$0" "$$@"' in services["postgresql"][
        "entrypoint"
    ][-1].replace('"$0" "$@"', '"$$0" "$$@"')
    assert services["postgresql"]["command"] == [
        "postgres",
        *("-c", "log_min_error_statement=panic"),
        *("-c", "log_error_verbosity=terse"),
        *("-c", "max_notify_queue_pages=64"),
    ]
