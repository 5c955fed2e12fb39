"""The program whose process the image's build writes as an executable, ``/pidone.snapshot``; docs/footprint.md.

It runs in the image's root under ``snapshot.c``. First it rehearses: it runs the program of a pod several times
against a small repo of its own, so that all that pods import and compute once is there. Then it asks to be written.
Each process that starts as the executable continues after that question, and ``restored`` renews what belongs to one
process only.
"""

import sys

sys.modules["_blake2"] = None  # asks the processor what it can do, and remembers it; nothing in a pod uses it

import _frozen_importlib_external  # noqa: E402
import _signal  # noqa: E402
import gc  # noqa: E402
import posix  # noqa: E402
from collections import Counter  # noqa: E402
from random import Random  # noqa: E402
from types import (  # noqa: E402  # noqa: E402
    CodeType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodDescriptorType,
    WrapperDescriptorType,
)

LIVES = 5  # code that has run often is not changed by running any more
BEATS = 3  # of each life
LIFE_SECONDS = 60.0  # at most
BUFFER = (
    1 << 18
)  # bytes for arguments and environment: the latter has at most about 90 kB, see pidone.pid1.stages
ORDER, MAGIC = 0x5AA9, b"pidone snapshot\0"  # see snapshot.c
PROGRAM = "/pidone/__main__.pyc"
# They ask the processor what it can do, and a pod's may be able to do less. A pod loads them when it needs them.
NOT_LOADED = {"_ssl", "_ctypes", "_hashlib", "_zstd"}
DESCRIPTORS = (GetSetDescriptorType, MemberDescriptorType, MethodDescriptorType, WrapperDescriptorType)


def tasks(port: int, metrics: int) -> list:
    """Return tasks that use all that most pods use."""
    url = f"http://127.0.0.1:{port}"
    get = {"host": "127.0.0.1", "port": port, "path": "/"}
    eureka = {"url": f"{url}/eureka", "app": "a", "port": port, "renewalInterval": 1}
    return [
        {"name": "ready", "probe": {"httpGet": get, "periodSeconds": 1}},
        {"name": "open", "probe": {"tcpSocket": {"host": "127.0.0.1", "port": port}, "periodSeconds": 1}},
        {"name": "up", "needs": ["ready.healthy"], "register": {"eureka": eureka, "follow": "ready"}},
        {"name": "beat", "needs": ["up.registered"], "every": 1, "heartbeat": {"of": "up"}},
        {"name": "metrics", "metrics": {"port": metrics, "collectors": ["process", "network", "tasks"]}},
    ]


class World:
    """The repo, the registry and the application of the rehearsed pod, in one server."""

    def __init__(self, listener, metrics):
        import trio

        self.listener = listener
        self.port = listener.socket.getsockname()[1]
        self.metrics = metrics
        self.requests = Counter()
        self.bundle = b""
        self.news = trio.Condition()

    async def change(self, tasks):
        from pidone.plan.digest import canonical
        from pidone.plan.format import encode_bundle
        from pidone.plan.model import Phase, Pod

        pod = Pod("rehearsal", "build", "00000000-0000-0000-0000-000000000000", "127.0.0.1")
        async with self.news:
            self.bundle = canonical(encode_bundle(tasks, phase=Phase.RUNNING, pod=pod))
            self.news.notify_all()

    async def answer(self, request):
        from pidone.http.message import Response
        from pidone.plan.digest import digest
        from pidone.plan.format import MEDIA_TYPE

        kind = f"{request.method} /{request.path.split('/')[1]}"
        async with self.news:
            self.requests[kind] += 1
            self.news.notify_all()
            if request.path != "/v1/bundle":
                return Response(204 if request.method == "POST" else 200)
            while (tag := f'"{digest(self.bundle.decode())}"') in request.headers.get("if-none-match", ""):
                await self.news.wait()
        return Response(200, {"content-type": MEDIA_TYPE, "etag": tag}, self.bundle)

    async def wait(self, kind, number):
        async with self.news:
            while self.requests[kind] < number:
                await self.news.wait()

    async def lead(self, status):
        """Give the pod its tasks, look at it as others do, and take the tasks away."""
        from contextlib import suppress

        import trio

        from pidone.errors import TransferTimeout
        from pidone.http.client import request

        await self.change(tasks(self.port, self.metrics))
        await self.wait("PUT /eureka", BEATS)
        here = "http://127.0.0.1"
        urls = [f"{here}:{self.metrics}/metrics"] * BEATS + [f"{here}:{status}/status"]
        for url in urls:
            answer = await request("GET", url, timeout=5.0)
            if answer.status != 200:
                raise RuntimeError(f"{url}: {answer.status} {answer.text}")
            await trio.sleep(0.1)
        for method in ("POST", "DELETE"):
            with suppress(TransferTimeout):  # this registry does not show what it is told
                await request(method, f"{here}:{status}/maintenance", timeout=1.0)
        beats = self.requests["PUT /eureka"]
        await self.wait("PUT /eureka", beats + 1)
        await self.change([])


async def life():
    """Run the program of a pod from its start until it has no tasks any more."""
    from functools import partial

    import trio

    from pidone.http.server import serve
    from pidone.journal import Journal
    from pidone.pod.live import live
    from pidone.pod.program import PodProgram
    from pidone.pod.settings import Settings

    listeners = [(await trio.open_tcp_listeners(0, host=b"127.0.0.1"))[0] for _ in range(3)]
    (served, *free) = listeners
    metrics, status = (listener.socket.getsockname()[1] for listener in free)
    for listener in free:
        listener.socket.close()
    world = World(served, metrics)
    url = f"http://127.0.0.1:{world.port}"
    posix.environ[b"PIDONE_REPO"], posix.environ[b"PIDONE_DOZE"] = url.encode(), b"/doze"
    settings = Settings(repos=(url,), linger=1.0, status=str(status))
    program = PodProgram(settings, Journal(lambda _line: None))
    await world.change([])
    with trio.fail_after(LIFE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(serve, world.answer, [served], max_connections=20))
            nursery.start_soon(world.lead, status)
            await live(program)
            nursery.cancel_scope.cancel()


def rehearse():
    import signal

    import trio

    from pidone import generated
    from pidone.pid1 import ask, signals, stages

    generated.TABLE = ""  # all is compiled here
    for number in range(LIVES):
        signals.ignore_other_signals()
        trio.run(life)
        print(f"snapshot: life {number + 1} of {LIVES}", flush=True)
    posix.environ[b"PIDONE_REPO"] = b"http://127.0.0.1:1"
    ask.main()  # nobody answers
    _signal.alarm(0)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    stages.block()
    stages.restored = True


def objects():
    """Return all objects that anything can reach, by address.

    The collector does not look into code objects, and not at the names of types and descriptors. Objects that only
    the result refers to are left out, since they will be freed before the process is written.
    """
    found = {}
    work = gc.get_objects()
    mine = {id(found), id(work)}
    work += [sys.modules, __builtins__]
    while work:
        each = work.pop()
        if id(each) in found or id(each) in mine:
            continue
        found[id(each)] = each
        work += gc.get_referents(each)
        kind = type(each)
        if kind is CodeType:
            work += [each.co_consts, each.co_names, each.co_name, each.co_qualname, each.co_filename]
            work += [each.co_linetable, each.co_exceptiontable]
            work += each.co_varnames + each.co_freevars + each.co_cellvars
        elif kind in DESCRIPTORS:
            work.append(each.__name__)
        elif (
            isinstance(each, type) and each.__flags__ & 1 << 9
        ):  # on the heap: those of others are made when asked
            work += [each.__name__, each.__qualname__]
        elif kind is slice or kind is range:
            work += [each.start, each.stop, each.step]
    del each
    (lonely,) = [sys.getrefcount(each) for address, each in {0: object()}.items()]
    while freed := [address for address, each in found.items() if sys.getrefcount(each) <= lonely]:
        for address in freed:
            del found[address]
    return found


def order(addresses, buffer):
    """Return the question to be written, as snapshot.c reads it."""
    head = bytes.__basicsize__ - 1  # of a bytes object, before its content
    numbers = [id(None), id(NAME), id("a"), id(str), id(buffer) + head, len(buffer), len(addresses)]
    text = MAGIC + b"".join(number.to_bytes(8, "little") for number in [*numbers, *addresses])
    return text, id(text) + head


def restored(buffer, options, generators):
    """Renew what belongs to one process. This is the list; a test looks for what is missing in it.

    Not here: what ``snapshot.c`` renews (threads, the stack protector), the mask of signals, which execve keeps, and
    the seed of hashes, which cannot be renewed.
    """
    size, argc = (int.from_bytes(buffer[at : at + 8], "little") for at in (0, 8))
    words = buffer[16 : size - 1].split(b"\0")
    sys.orig_argv[:] = [word.decode("utf-8", "surrogateescape") for word in words[:argc]]
    if sys.orig_argv[: len(options)] != options:
        raise ValueError("the snapshot is of Python with other options")
    sys.executable, sys.argv[:] = sys.orig_argv[0], sys.orig_argv[len(options) :]

    locale = posix.environ.get(b"LC_CTYPE")  # is Python's own, if the environment has no locale
    for name in list(posix.environ):
        posix.unsetenv(name)
    posix.environ.clear()  # os.environ has the same dictionary
    for word in words[argc:]:
        name, equals, value = word.partition(b"=")
        if name and equals and name not in posix.environ:
            posix.environ[name] = value
            posix.putenv(name, value)
    if locale and b"LC_CTYPE" not in posix.environ:
        posix.environ[b"LC_CTYPE"] = locale
        posix.putenv(b"LC_CTYPE", locale)

    for generator in generators:
        generator.seed()
    _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)
    _signal.signal(_signal.SIGXFSZ, _signal.SIG_IGN)
    _signal.signal(_signal.SIGINT, _signal.default_int_handler)
    sys.modules["threading"].main_thread()._set_native_id()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            posix.fstat(number)
        except OSError:  # closed
            setattr(sys, name, None)
            setattr(sys, f"__{name}__", None)
        else:
            if number:
                getattr(sys, name).reconfigure(line_buffering=number == 2 or posix.isatty(number))


def main():
    loader = _frozen_importlib_external.SourcelessFileLoader("pidone", PROGRAM)
    program = {"__name__": "pidone.__main__", "__file__": PROGRAM}
    exec(loader.get_code("pidone"), program)  # noqa: S102 - as the interpreter does with its script
    rehearse()
    loaded = NOT_LOADED & set(sys.modules)
    if loaded:
        raise RuntimeError(f"these modules must not be loaded: {loaded}")

    options, buffer = sys.orig_argv[:-1], bytes(BUFFER)
    while gc.collect():
        pass
    gc.disable()
    generators = [each for each in gc.get_objects() if isinstance(each, Random)]
    found = objects()  # from here on nothing is freed that has been there before
    _text, address = order(list(found), buffer)
    found.clear()
    gc.freeze()  # otherwise the first full collection would write to all
    gc.enable()
    posix.lseek(ORDER, address, 0)
    try:
        restored(buffer, options, generators)
    except BaseException as error:  # noqa: BLE001 - doze starts the ordinary Python
        posix.write(2, f"event=snapshot-unusable error={type(error).__name__}\n".encode())
        posix._exit(126)
    program["process_one"]()


NAME = sys.intern(f"{MAGIC}")  # a string that is interned and not a constant

if __name__ == "__main__":
    main()
