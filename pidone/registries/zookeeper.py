"""ZooKeeper: one ephemeral node for the instance, as Curator, Spring Cloud or SmartStack read it.

Rules that are not obvious, all observed on the server:

- The node lives as long as the session that created it, not as long as our connection. A heartbeat asks for the node:
  any request renews the session, as a ping does. A broken connection is replaced within the session's timeout, at any
  server.
- A node of our path may be of a session that has not ended yet, of a predecessor or of ours before. ``ephemeralOwner``
  tells. It is deleted and created again, not overwritten: it would end with its session, and readers watch for both.
- Expiry of a session and deletion of its nodes are two steps, so the node may still be there after the expiry.
- Parents are containers, which the server removes when they are empty: a creation may meet NoNode at any time.
- A failed creation may have been carried out. All steps begin with a look, so they may be repeated from the start.
- Unhealthy is no node: readers of Curator's layout do not look at a status DOWN. The session stays, so that UP costs no
  new one. OUT_OF_SERVICE is in the data, where the layout has a place for it, and else no node.
- To delete a node is a permission of its parent, so a user of ours protects the folder of the service too.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from random import Random
from time import time
from typing import NamedTuple, TypeVar

from pidone.errors import Refused, RegistryError, RegistryRefused
from pidone.http.urls import authority, canonical
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.registries import Entry, Registry, Status
from pidone.registries import _zookeeper_names as names
from pidone.registries import _zookeeper_wire as wire
from pidone.registries._files import Credentials, credentials_in
from pidone.registries._zookeeper_client import AnsweredError, Client, ExpiredError
from pidone.registries._zookeeper_layouts import Instance, default_uri_spec, entry
from pidone.registries._zookeeper_wire import Code, Flag, Operation, Permission, Records, Reply, Stat

T = TypeVar("T")

TRIES = 5  # of steps between which another client may change the node
LAYOUTS = ("spring", "curator", "smartstack")


class Access(NamedTuple):
    """Who may do what with our nodes. Without a user everybody may do everything."""

    credentials: Credentials | None
    world_readable: bool

    @property
    def user(self) -> str:
        """The name of the user; empty without one."""
        return self.credentials.user if self.credentials is not None else ""

    def login(self) -> tuple[str, str] | None:
        """Return the user and the password of now; None without a user. Raises ``RegistryRefused``."""
        return (self.credentials.user, self.credentials.read()) if self.credentials is not None else None

    def is_like(self, other: "Access") -> bool:
        """True if nodes of both have the same ACL."""
        return (self.user, self.world_readable) == (other.user, other.world_readable)

    def permissions(self, everybody: int) -> list[Permission]:
        """Return an ACL: all for our user, and these bits for everybody."""
        if not self.user:
            return [(wire.ALL, "world", "anyone")]
        world = [(everybody, "world", "anyone")] if everybody else []
        return [(wire.ALL, "auth", ""), *world]

    @property
    def node(self) -> list[Permission]:
        """The ACL of our node and of its service's folder."""
        return self.permissions(wire.READ if self.world_readable else 0)

    @property
    def parents(self) -> list[Permission]:
        """The ACL of the folders above: other users have their services beside ours."""
        return self.permissions(wire.READ | wire.CREATE)


class _Node:
    """A node of our instance, by whatever session."""

    __slots__ = ("entry", "hash", "path", "stat")

    def __init__(self, path: str, stat: Stat, data: bytes) -> None:
        self.path, self.stat = path, stat
        self.entry, self.hash = entry(data), hash(data)


class ZooKeeper:
    """One instance in one ensemble of ZooKeeper."""

    def __init__(
        self,
        servers: list[tuple[str, int]],
        instance: Instance,
        access: Access,
        *,
        timeout: float,
        source: str | None,
        namespace: str = "",
        clock: Callable[[], float] = time,
        random: Random | None = None,
    ) -> None:
        self._servers = servers
        self._instance = instance
        self._access = access
        self._namespace = namespace
        self._clock = clock
        self._client = Client(
            servers, timeout=timeout, user=access.login, source=source, random=random or Random()
        )
        self._path = ""  # of our node; empty without one
        # Hashes of the data that we have written into the node. Of a request without an answer it is not known.
        self._written = frozenset[int]()
        self._overridden = False  # an operator has put the instance out of service
        self._found = dict[
            str, int
        ]()  # the nodes of the last ``read``: the transaction that made each, by its path

    @property
    def where(self) -> str:
        return ",".join(authority(*each) for each in self._servers)

    @property
    def endpoint(self) -> str:
        return self._client.server

    @property
    def places(self) -> frozenset[str]:
        return frozenset(
            canonical(f"zookeeper://{authority(*each)}", self._namespace) for each in self._servers
        )

    @property
    def instance(self) -> str:
        return self._instance.path

    @property
    def address(self) -> str:
        return self._instance.address

    @property
    def interval(self) -> float:
        return max(0.1, self._client.timeout / 3)

    @property
    def lease(self) -> float:
        return self._client.timeout

    async def register(self, status: Status) -> str:
        """Create the node, change its data or delete it, and return the status that the registry shows then."""
        shown = status is Status.UP or (status is Status.OUT_OF_SERVICE and self._instance.has_status)
        steps = partial(self._put, status) if shown else partial(self._hide, status)
        return await self._run("register", steps, within=self.lease, anew=True)

    async def heartbeat(self) -> bool:
        if self._client.session is None:
            return False
        try:
            # so that after a call without success another one finds the session alive
            return await self._run("heartbeat", self._beat, within=2 * self.lease / 3, anew=False)
        except ExpiredError:
            return False

    async def read(self) -> Entry | None:
        return await self._run("read", self._look, within=self.lease, anew=True)

    async def deregister(self) -> None:
        await self._run("deregister", self._leave, within=self.lease, anew=True)

    async def close(self) -> None:
        """Close the connection, and end the session if it holds no node."""
        if self._path:
            self._client.drop()
        else:
            await self._client.end()

    def succeeds(self, previous: Registry) -> bool:
        return (
            isinstance(previous, ZooKeeper)
            and previous.instance == self.instance
            # A node keeps the ACL that it was created with, and another user may not have the permission to delete it.
            and previous._access.is_like(self._access)
            and not self.places.isdisjoint(previous.places)
        )

    def take_over(self, previous: Registry) -> None:
        assert isinstance(previous, ZooKeeper)
        # Users are added to a connection, so one with another password has to be another connection.
        self._client.take_over(previous._client, connection=previous._access == self._access)
        self._path, self._written, self._overridden = previous._path, previous._written, previous._overridden

    async def _run(self, what: str, steps: Callable[[], Awaitable[T]], *, within: float, anew: bool) -> T:
        """Run the steps at one server after another. Raises the registry's own errors with their remedies."""
        try:
            return await self._client.run(steps, within=within, anew=anew)
        except AnsweredError as error:
            trouble = self._trouble(error.code)
            text = f"{what} {self._instance.path} at {self.where}: {error}"
            raise (RegistryRefused if trouble else RegistryError)(
                f"{text}{trouble and ': '}{trouble}"
            ) from error

    def _trouble(self, code: int) -> str:
        """Return the remedy for an error that lasts until a person changes something; else empty."""
        folder = self._instance.folder
        match code:
            case Code.NO_AUTH if self._access.user:
                user = f'the user "{self._access.user}"'
                return f"the ACL of {folder} or of a node above does not permit it to {user}; is the password right?"
            case Code.NO_AUTH:
                return f"the ACL of {folder} or of a node above permits it to users alone; give user and password"
            case Code.INVALID_ACL:
                return "the registry does not take our ACL; does it have digest authentication?"
            case Code.NO_CHILDREN_FOR_EPHEMERALS:
                return f"{folder} or a node above is another program's ephemeral node; use another basePath or service"
            case Code.NOT_EMPTY:
                return f"{self._instance.path} has nodes below it; is it a folder of another program?"
            case Code.BAD_ARGUMENTS:
                return "the registry does not take the path"
            case Code.QUOTA_EXCEEDED:
                return "the quota of a node above is used up"
        return ""

    async def _beat(self) -> bool:
        """Renew the session. Returns False if our node is gone, or is of another session."""
        if not self._path:
            await self._stat("/")
            return True
        stat = await self._stat(self._path)
        return stat is not None and self._is_owner(stat)

    async def _look(self) -> Entry | None:
        nodes = await self._nodes()
        self._found = {node.path: node.stat.created for node in nodes}
        best = [node for node in nodes if self._is_owner(node.stat)]
        best += [node for node in nodes if node.entry.address == self.address]
        return next((node.entry for node in (*best, *nodes)), None)

    async def _put(self, status: Status) -> str:
        """Create our node, or write its data. Returns the status that it has then."""
        # Mostly there is none, and to create one shows it. Of numbered nodes there can be several.
        look = bool(self._path) or self._instance.numbered
        for _ in range(TRIES):
            nodes = await self._nodes() if look else []
            look = True
            own = next((node for node in nodes if self._is_owner(node.stat)), None)
            for node in nodes:
                if node is not own:
                    await self._delete(node)
            if own is not None:
                self._note_override(own)
            shown = Status.OUT_OF_SERVICE if self._overridden else status
            data = self._instance.document(shown, int(self._clock() * 1000))
            self._written |= {hash(data)}
            if await (self._create(data) if own is None else self._write(own, data)):
                self._written = frozenset({hash(data)})
                return shown.value
        raise RegistryError(
            f"register {self._instance.path} at {self.where}: another client changes it all the time; does another "
            "pod have the same id?"
        )

    async def _hide(self, status: Status) -> str:
        """Delete all nodes of our instance, and keep the session."""
        await self._delete_all(lambda _: True)
        return status.value

    async def _leave(self) -> None:
        """Delete our node, and end the session."""
        await self._delete_all(self._is_ours)
        await self._client.end()
        self._client.session = None  # it holds nothing, so it may end after its timeout
        self._overridden = False

    async def _delete_all(self, chosen: Callable[[_Node], bool]) -> None:
        """Delete the chosen nodes of our instance. Returns when the registry says that there are none."""
        for _ in range(TRIES):
            left = 0
            for node in filter(chosen, await self._nodes()):
                if self._is_owner(node.stat):
                    self._note_override(node)
                try:
                    left += not await self._delete(node)
                except AnsweredError as error:
                    if (
                        error.code != Code.NO_AUTH
                        or not self._is_owner(node.stat)
                        or not await self._client.end()
                    ):
                        raise
                    # To end a session needs no permission. It had only this node.
                    self._path = ""
                    return
            if not left:
                self._path = ""
                return
        raise RegistryError(
            f"{self._instance.path} at {self.where} is changed whenever it is deleted; does another pod have the same "
            "id?"
        )

    async def _write(self, node: _Node, data: bytes) -> bool:
        """Write the data of our node. Returns False if it is gone, or if another client has written it."""
        parts = wire.text(node.path), wire.buffer(data), wire.integer(node.stat.version)
        reply = await self._call(Operation.SET_DATA, *parts, expected=(Code.NO_NODE, Code.BAD_VERSION))
        self._path = node.path
        return reply.code == Code.OK

    async def _create(self, data: bytes) -> bool:
        """Create our node, and its parents if they are missing. Returns False if there is one now."""
        path, permissions = self._instance.path, self._access.node
        for _ in range(TRIES):
            body = wire.creation(path, data, permissions, self._instance.flag)
            reply = await self._call(Operation.CREATE, body, expected=(Code.NODE_EXISTS, Code.NO_NODE))
            if reply.code == Code.NO_NODE:
                await self._create_folder(self._instance.folder, permissions)
                continue
            if reply.code == Code.OK:
                self._path = Records(reply.rest).text()
            return reply.code == Code.OK
        return False

    async def _create_folder(self, path: str, permissions: Sequence[Permission]) -> None:
        """Create a container, and those above it that are missing."""
        if not path:
            return  # the root is always there
        for operation, flag in (
            (Operation.CREATE_CONTAINER, Flag.CONTAINER),
            (Operation.CREATE, Flag.PERSISTENT),  # for servers before 3.5, as Curator does
        ):
            body = wire.creation(path, b"", permissions, flag)
            expected = (Code.NODE_EXISTS, Code.NO_NODE, Code.UNIMPLEMENTED)
            reply = await self._call(operation, body, expected=expected)
            if reply.code == Code.NO_NODE:
                await self._create_folder(path.rpartition("/")[0], self._access.parents)
                reply = await self._call(operation, body, expected=expected)
            if reply.code != Code.UNIMPLEMENTED:
                return

    async def _nodes(self) -> list[_Node]:
        """Return the nodes of our instance, by whatever session."""
        folder = self._instance.folder
        if not self._instance.numbered:
            ours = [self._instance.id]
        else:
            parts = wire.text(folder), wire.flag(set_=False)
            reply = await self._call(Operation.GET_CHILDREN, *parts, expected=(Code.NO_NODE,))
            children = Records(reply.rest).texts() if reply.code == Code.OK else []
            ours = [child for child in children if self._instance.is_ours(child)]
        nodes = [await self._node(f"{folder}/{name}") for name in ours]
        return [node for node in nodes if node is not None]

    async def _node(self, path: str) -> _Node | None:
        reply = await self._call(
            Operation.GET_DATA, wire.text(path), wire.flag(set_=False), expected=(Code.NO_NODE,)
        )
        if reply.code == Code.NO_NODE:
            return None
        records = Records(reply.rest)
        data = records.buffer()
        return _Node(path, records.stat(), data)

    async def _stat(self, path: str) -> Stat | None:
        reply = await self._call(
            Operation.EXISTS, wire.text(path), wire.flag(set_=False), expected=(Code.NO_NODE,)
        )
        return Records(reply.rest).stat() if reply.code == Code.OK else None

    async def _delete(self, node: _Node) -> bool:
        """Delete a node. Returns False if another client has changed it since it was read."""
        parts = wire.text(node.path), wire.integer(node.stat.version)
        reply = await self._call(Operation.DELETE, *parts, expected=(Code.NO_NODE, Code.BAD_VERSION))
        return reply.code != Code.BAD_VERSION

    async def _call(self, operation: int, *parts: bytes, expected: Collection[int]) -> Reply:
        return await self._client.call(operation, *parts, expected=expected)

    def _is_owner(self, stat: Stat) -> bool:
        session = self._client.session
        return session is not None and stat.owner == session.id

    def _is_ours(self, node: _Node) -> bool:
        """True if the node is of our session, of our pod before, or the one that ``read`` has returned."""
        return (
            self._is_owner(node.stat)
            or node.entry.address == self.address
            or self._found.get(node.path) == node.stat.created
        )

    def _note_override(self, node: _Node) -> None:
        """Remember what an operator has written into our node since we wrote it."""
        if node.hash not in self._written:
            self._overridden = node.entry.status == Status.OUT_OF_SERVICE


def build(fields: Fields, pod: Pod, source: str | None) -> ZooKeeper:
    """Build the driver from ``register: zookeeper``. Raises ``Refused``."""
    layout = fields.text("layout", LAYOUTS[0])
    others = [
        name for name in (("sslPort", "uriSpec") if layout == "smartstack" else ("weight",)) if name in fields
    ]
    servers = fields.text("servers")
    base = fields.text("basePath", "/services")
    service = fields.text("service")
    port = fields.integer("port", least=1, most=65535)
    ssl_port: int | None = fields.integer("sslPort", None, least=1, most=65535)
    address = fields.text("address", pod.ip)
    instance = Instance(
        layout=layout,
        base=base.rstrip("/"),
        service=service,
        id=fields.text("id", f"{pod.name}:{service}:{port}"),
        address=address,
        port=port,
        ssl_port=ssl_port,
        uri_spec=fields.text("uriSpec", default_uri_spec(address, secure=ssl_port is not None)),
        weight=fields.integer("weight", None, least=0, most=1_000_000),
        metadata=fields.table("metadata"),
    )
    for name, wrong in (
        ("servers", names.servers(servers)),
        ("basePath", names.path(base)),
        ("service", names.node(service)),
        ("id", names.node(instance.id)),
        ("uriSpec", names.uri_spec(instance.uri_spec)),
    ):
        if wrong:
            raise Refused(f"{fields.path}.{name}: {wrong}")
    if instance.layout not in LAYOUTS:
        raise Refused(f'{fields.path}.layout: expected {" or ".join(LAYOUTS)}, not "{instance.layout[:40]}"')
    for name in others:
        raise Refused(f"{fields.path}.{name}: it does not go with layout: {instance.layout}; remove it")
    for wrong in filter(None, map(names.metadata_key, instance.metadata)):
        raise Refused(f"{fields.path}.metadata: {wrong}")
    access = Access(credentials_in(fields, "user"), fields.flag("worldReadable", default=True))
    if ":" in access.user:
        raise Refused(
            f'{fields.path}.user: a name without ":", which begins the password in digest authentication'
        )
    timeout = fields.seconds("sessionTimeout", 30.0, least=1, most=3600)
    fields.done()
    return ZooKeeper(
        [names.server(part.strip()) for part in servers.split(",")],
        instance,
        access,
        timeout=timeout,
        source=source,
        namespace=pod.namespace,
    )
