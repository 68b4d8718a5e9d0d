"""Is a port free, and if not, who may hold it?"""

import errno
import random
import socket

from heartbeat_app.exceptions import EmbeddedServerError

# Below those that systems give to outgoing connections: one of these could take it
# before the server listens.
PICKED_FROM = range(10_000, 32_000)


def require_free_port(host: str, port: int, *, server: str, setting: str) -> None:
    """Raises EmbeddedServerError, with a way on, when `port` cannot be had.

    `setting` is the variable that a person changes to use another port.
    """
    try:
        free = _is_free(host, port)
    except OSError as error:
        raise EmbeddedServerError(
            f"{server} cannot listen on port {port} of {host}: {error.strerror} "
            f"({setting} in .env)."
        ) from error
    if free:
        return
    raise EmbeddedServerError(
        f"Port {port} on {host}, which {server} needs, is taken"
        f"{_holder(port)}.\n"
        f"Stop what holds it, or choose another port with {setting} in .env."
    )


def pick_port(host: str) -> int:
    """A port that is free now, for a listener that nobody has to know."""
    for port in random.SystemRandom().sample(PICKED_FROM, 100):
        if _is_free(host, port):
            return port
    raise EmbeddedServerError(f"Of a hundred ports of {host} each was taken.")


def _is_free(host: str, port: int) -> bool:
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        # Without it, connections of the last run that still fade away (TIME_WAIT)
        # would count as a taken port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
        return True


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _holder(port: int) -> str:
    """` by java (process 123)`, as far as this user may see it."""
    import psutil

    try:
        for connection in psutil.net_connections("tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr
                and connection.laddr[1] == port
                and connection.pid
            ):
                name = psutil.Process(connection.pid).name()
                return f" by {name} (process {connection.pid})"
    except psutil.Error:
        pass
    return (
        ", probably by a program of another user or in a container "
        f"(`sudo ss -ltnp 'sport = :{port}'` names it)"
    )
