"""What a run talks to: the database, and the Ray cluster."""

from collections.abc import Iterator

from autoft.cli.checks.finding import Asked, Finding, ok, problem, skipped, warning
from autoft.cli.runtime import ray_address
from autoft.errors import ClusterError, StorageError
from storage import StorageURL, embedded_url
from storage.records import DatabaseState, check

DATABASE, CLUSTER = 3, 4  # exit codes
SKEW_SECONDS, WRONG_CLOCK_SECONDS = 2.0, 60.0  # how far clocks may be apart before times mislead, and before something is broken
_REACH = "see that the server runs, and that AUTOFT_STORAGE_URL or AUTOFT_STORAGE_URL_FILE names it"


def database(asked: Asked) -> Iterator[Finding]:
    """The database: reachable, what tables it has, rights, pooler, clock."""
    if isinstance(asked.storage, StorageError):
        yield problem("database", str(asked.storage), _REACH, DATABASE)
        return
    url = asked.storage or embedded_url()
    try:
        state = check(url)
    except StorageError as error:
        yield problem("database", str(error), _REACH, DATABASE)
        return
    yield ok("database", f"{state.server} at {state.database}" + ("" if asked.storage else ", the embedded one"))
    yield from _tables(state)
    if url.is_postgres:
        yield from _server(url)
    else:
        yield skipped("database clock", "a file has none")


def _tables(state: DatabaseState) -> Iterator[Finding]:
    """Optuna's tables and ours."""
    optuna, ours, may_make = state.optuna, state.records, state.can_create
    detail = f"Optuna's {optuna.found or 'not there'} (needed {optuna.needed}), ours {ours.found or 'not there'} (needed {ours.needed})"
    faults = [line for line in state.problems if not (may_make and " are not there;" in line)]
    if faults:
        yield problem("tables", f"{detail}: {'; '.join(faults)}", "see docs/deployment.md, and: autoft db --help", DATABASE)
    elif None in (optuna.found, ours.found):
        yield ok("tables", f"{detail}; this user may make what is missing, and the first launch does")
    else:
        yield ok("tables", detail)


def _server(url: StorageURL) -> Iterator[Finding]:
    from storage.inspect import inspect_server

    try:
        facts = inspect_server(url)
    except StorageError as error:
        yield problem("database server", str(error), _REACH, DATABASE)
        return
    if facts.pooler is not None:
        yield problem("pooler", facts.pooler, "connect to Postgres itself, or to the pooler's session mode", DATABASE)
    else:
        yield ok("pooler", "none that swaps sessions")
    yield _clock(facts.clock_ahead_seconds)
    faults = []
    if facts.superuser and url.sqlalchemy.host is not None:
        faults.append(("the role is a superuser", "give AutoFT a role that only owns its database (deploy/postgres/10-autoft.sh)"))
    if facts.encrypted is False:
        faults.append(("the connection is not encrypted", "add ?sslmode=verify-full to the URL unless the network is private"))
    if not facts.durable:
        faults.append(("fsync or full_page_writes is off", "switch them on: a power cut would lose or break the studies"))
    if facts.connections > 0.8 * facts.max_connections:
        faults.append((f"{facts.connections} of {facts.max_connections} connections are in use", "raise max_connections, or end idle sessions"))
    for detail, advice in faults:
        yield warning("database server", detail, advice)
    if not faults:
        yield ok("database server", f"{facts.connections} of {facts.max_connections} connections in use")


def _clock(ahead: float) -> Finding:
    detail = "agrees with this machine's" if abs(ahead) <= SKEW_SECONDS else f"is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    if abs(ahead) > WRONG_CLOCK_SECONDS:
        return problem("database clock", detail, "set both by NTP (timedatectl set-ntp true): who is alive is judged by these times", DATABASE)
    if abs(ahead) > SKEW_SECONDS:
        return warning("database clock", detail, "set both by NTP: timedatectl set-ntp true")
    return ok("database clock", f"{detail} ({ahead:+.2f} s)")


def ray(asked: Asked) -> Iterator[Finding]:
    """The cluster's token, and whether the cluster can be joined and what it has."""
    from workers.inspect import inspect_cluster

    address = ray_address()
    yield _token(address)
    if address is None:
        yield ok("ray", "RAY_ADDRESS is not set: every launch starts Ray on this machine")
        return
    try:
        facts = inspect_cluster(address)
    except ClusterError as error:
        yield problem("ray", str(error), "a driver has to run on a node of the cluster: join it first with ray start --address=HEAD:6379", CLUSTER)
        return
    detail = f"{facts.nodes} nodes, {facts.cpus:g} CPU cores, {facts.gpus:g} GPUs at {address} (Ray {facts.ray_version})"
    if facts.cpus < 1:
        yield warning("ray", detail, "the cluster has no workers yet: start some, or wait for the autoscaler")
    else:
        yield ok("ray", detail)


def _token(address: str | None) -> Finding:
    from workers.inspect import inspect_token

    facts = inspect_token()
    mode = facts.mode or "not set"
    if facts.problem is not None:
        return problem("ray token", f"{facts.source}: {facts.problem}", "set RAY_AUTH_TOKEN_PATH to the cluster's token file", CLUSTER)
    if facts.source is None and facts.mode == "token" and address is not None:
        return problem("ray token", "RAY_AUTH_MODE=token, and there is no token", "set RAY_AUTH_TOKEN_PATH to the cluster's token file", CLUSTER)
    if address is not None and (facts.source is None or facts.mode == "disabled"):
        advice = "start the cluster with RAY_AUTH_MODE=token and a token: whoever reaches it without one can run code"
        return warning("ray token", f"mode {mode}, {'no token' if facts.source is None else 'a token that is not used'}", advice)
    if facts.open_to_others:
        return warning("ray token", f"{facts.source} can be read by every user of this machine", f"run: chmod 600 {facts.source}")
    if facts.source is None:
        return ok("ray token", "none yet; Ray makes one for a cluster of this machine's own")
    return ok("ray token", f"mode {mode}, from {facts.source}")
