"""What the checks stand on: servers, a client over bare sockets, bystanders, checks and their results."""

import asyncio
import contextlib
import json
import os
import re
import signal
import ssl as tls
import tempfile
import time
import traceback
from pathlib import Path

# A pause in a stream that a reader notices, and what a new chat may wait for its first word beside heavy work.
STALL = 2.0
FIRST = 3.0
CHECKS = []


class Skip(Exception):
    """This machine lacks something."""


class Broken(Exception):
    """The server closed, or what it said is no HTTP."""


def check(title, background=False):
    """Marks a check. Background checks wait more than they work, and run beside the others."""

    def mark(function):
        CHECKS.append((title, function, background))
        return function

    return mark


def need(condition, message):
    if not condition:
        raise AssertionError(message)


def brief(thing, n=300):
    text = thing if isinstance(thing, str) else repr(thing)
    return text if len(text) <= n else text[:n] + "…"


class Answer:
    """Status, headers (lower case) and body."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def message(self):
        """The error in words; fails when it is not shaped as OpenAI's errors are."""
        error = self.json["error"]
        need(isinstance(error["message"], str) and error["message"] and {"type", "param", "code"} <= set(error), f"no error's shape: {brief(self.body)}")
        return error["message"]

    def __repr__(self):
        return f"{self.status} {brief(self.body)}"


class Connection:
    """A connection whose bytes the check decides."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, server, ssl=None, **options):
        return cls(*await asyncio.open_connection("127.0.0.1", server.port, ssl=ssl, **options))

    async def send(self, data):
        self.writer.write(data)
        await self.writer.drain()

    async def head(self):
        """Status and headers of an answer."""
        while True:
            first = await self.reader.readline()
            if not first:
                raise Broken("closed without an answer")
            found = re.fullmatch(rb"HTTP/1\.1 (\d{3})[^\r\n]*\r\n", first)
            if not found:
                raise Broken(f"no status line: {brief(first)}")
            headers = {}
            while (line := await self.reader.readline()) not in (b"\r\n", b""):
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.strip().lower()] = value.strip()
            if int(found[1]) != 100:
                return int(found[1]), headers

    async def parts(self, headers):
        """The parts of a body as they come."""
        if headers.get("transfer-encoding") == "chunked":
            while True:
                line = await self.reader.readline()
                if not line:
                    raise Broken("closed within a body")
                size = int(line, 16)
                data = await self.reader.readexactly(size)
                need(await self.reader.readexactly(2) == b"\r\n", "a chunk is longer than it said")
                if size == 0:
                    return
                yield data
        elif length := int(headers.get("content-length", 0)):
            yield await self.reader.readexactly(length)

    async def answer(self):
        status, headers = await self.head()
        body = b"".join([part async for part in self.parts(headers)])
        return Answer(status, headers, body)

    async def ended(self, seconds):
        """Waits until the server closes; what it said before."""
        said = b""
        with contextlib.suppress(ConnectionError):
            while data := await asyncio.wait_for(self.reader.read(65536), seconds):
                said += data
        return said

    def close(self):
        with contextlib.suppress(Exception):
            self.writer.transport.abort()


class Server:
    """A hawfinch server. `program` is set by `run`."""

    program = None

    def __init__(self, *args, ssl=None, key=None, env=None, program=None):
        self.args, self.ssl, self.key, self.env = list(args), ssl, key, env or {}
        self.own_program = program
        self.process = self.port = None

    async def __aenter__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="hawfinch-faults-")
        if not {"--state-dir", "--no-state-dir"} & set(self.args):
            self.args += ["--state-dir", f"{self.folder.name}/states"]
        if "--state-memory" not in self.args:
            self.args += ["--state-memory", "64"]
        await self.start()
        return self

    async def __aexit__(self, *_):
        self.kill()
        self.folder.cleanup()

    @property
    def log(self):
        return Path(f"{self.folder.name}/log").read_text(errors="replace")

    async def start(self, wait=60):
        env = {k: v for k, v in os.environ.items() if k != "HAWFINCH_API_KEY"} | self.env
        with open(f"{self.folder.name}/log", "w") as log:
            command = [self.own_program or Server.program, "serve", "--port", "0", *self.args]
            self.process = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log, env=env)
        until = time.monotonic() + wait
        while not (found := re.search(r"https?://127\.0\.0\.1:(\d+)", self.log)):
            if self.process.returncode is not None:
                raise AssertionError(f"the server did not start: {brief(self.log[-600:], 600)}")
            need(time.monotonic() < until, "the server did not start in time")
            await asyncio.sleep(0.02)
        self.port = int(found[1])

    def kill(self, how=signal.SIGKILL):
        if self.process and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(how)

    async def died(self, seconds=30):
        return await asyncio.wait_for(self.process.wait(), seconds)

    @property
    def alive(self):
        return self.process.returncode is None

    def rss(self):
        """Resident megabytes."""
        with open(f"/proc/{self.process.pid}/status") as f:
            return int(re.search(r"VmRSS:\s+(\d+)", f.read())[1]) / 1024

    def head(self, method, path, headers=None, length=None):
        """A request's head as bytes."""
        all_headers = {"Host": f"127.0.0.1:{self.port}"}
        if self.key:
            all_headers["Authorization"] = f"Bearer {self.key}"
        if length is not None:
            all_headers |= {"Content-Type": "application/json", "Content-Length": str(length)}
        all_headers |= headers or {}
        lines = [f"{method} {path} HTTP/1.1"] + [f"{k}: {v}" for k, v in all_headers.items() if v is not None]
        return "\r\n".join(lines).encode("latin-1", "surrogateescape") + b"\r\n\r\n"

    async def ask(self, method, path, body=None, headers=None, timeout=60):
        """One request on a connection of its own."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        connection = await Connection.open(self, self.ssl)
        try:
            head = self.head(method, path, headers, None if body is None else len(body))
            writing = asyncio.ensure_future(connection.send(head + (body or b"")))
            try:
                answer = await asyncio.wait_for(connection.answer(), timeout)
            finally:
                writing.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                    await writing
            return answer
        except asyncio.TimeoutError:
            raise AssertionError(f"{method} {path}: no answer within {timeout} s") from None
        finally:
            connection.close()

    async def get(self, path, **options):
        answer = await self.ask("GET", path, **options)
        need(answer.status == 200, f"GET {path}: {answer}")
        return answer.json

    async def post(self, path, body, **options):
        answer = await self.ask("POST", path, body, **options)
        need(answer.status == 200, f"POST {path}: {answer}")
        return answer.json

    async def raw(self, data, timeout=30):
        """Bytes to the server; its answer, or None when it closed without one."""
        connection = await Connection.open(self, self.ssl)
        try:
            with contextlib.suppress(ConnectionError):
                await connection.send(data)
            return await asyncio.wait_for(connection.answer(), timeout)
        except (Broken, ConnectionError, asyncio.IncompleteReadError):
            return None
        except asyncio.TimeoutError:
            raise AssertionError(f"no answer within {timeout} s to {brief(data)}") from None
        finally:
            connection.close()

    async def stream(self, body, on_part=None, timeout=120):
        """A streamed chat."""
        body = {"model": "demo", "stream": True, "stream_options": {"include_usage": True}} | body
        data = json.dumps(body).encode()
        connection = await Connection.open(self, self.ssl)
        try:
            await connection.send(self.head("POST", "/v1/chat/completions", None, len(data)) + data)
            return await asyncio.wait_for(Stream().read(connection, on_part), timeout)
        except asyncio.TimeoutError:
            raise AssertionError(f"a stream took more than {timeout} s") from None
        finally:
            connection.close()

    async def idle(self, seconds=10):
        """Waits until nothing runs."""
        until = time.monotonic() + seconds
        while True:
            model = (await self.get("/health"))["models"][0]
            if model["running"] == model["waiting"] == 0:
                return
            need(time.monotonic() < until, f"after {seconds} s requests of clients that left still run: {model}")
            await asyncio.sleep(0.1)


class Stream:
    """What a stream said and when."""

    def __init__(self):
        self.text, self.times, self.finish, self.usage, self.done, self.error = "", [], None, None, False, None
        self.began = time.monotonic()

    async def read(self, connection, on_part=None):
        status, headers = await connection.head()
        pending = b""
        if status != 200:
            body = b"".join([part async for part in connection.parts(headers)])
            raise AssertionError(f"a chat was refused: {status} {brief(body)}")
        async for part in connection.parts(headers):
            pending += part
            *events, pending = pending.split(b"\n\n")
            for event in events:
                self.take(event.decode())
            if on_part:
                on_part(self)
        need(not pending, f"half an event: {brief(pending)}")
        return self

    def take(self, event):
        for line in event.split("\n"):
            if not line.startswith("data:"):
                continue
            data = line[5:].strip()
            need(not self.done, f"an event after [DONE]: {brief(data)}")
            if data == "[DONE]":
                self.done = True
                continue
            chunk = json.loads(data)
            if "error" in chunk:
                self.error = chunk["error"]
                continue
            for choice in chunk["choices"]:
                if text := choice["delta"].get("content"):
                    self.text += text
                    self.times.append(time.monotonic())
                self.finish = choice["finish_reason"] or self.finish
            self.usage = chunk.get("usage") or self.usage

    @property
    def cached(self):
        return self.usage["prompt_tokens_details"]["cached_tokens"]

    @property
    def first(self):
        return (self.times or [self.began])[0] - self.began

    @property
    def gap(self):
        return max((b - a for a, b in zip(self.times, self.times[1:])), default=0)


# A chat that is the same every time, long enough to be disturbed.
SEEDED = {"messages": [{"role": "user", "content": "Tell me about the river and the old house."}],
          "max_tokens": 60, "seed": 11, "temperature": 1.0, "top_p": 0.9}


class Bystander:
    """Chats beside what happens to the server: the text must be the one that it had alone, and no pause long."""

    texts = {}

    def __init__(self, server, stall=STALL, first=FIRST):
        self.server, self.stall, self.patience = server, stall, first
        self.count, self.task, self.stop = 0, None, False
        self.longest = self.slowest = self.first = 0

    async def __aenter__(self):
        # The text alone is that of the first server, whatever happened later: servers of one model say the same.
        if "alone" not in Bystander.texts:
            Bystander.texts["alone"] = (await self.chat(False)).text
        self.task = asyncio.create_task(self.run())
        while self.count == 0 and not self.task.done():
            await asyncio.sleep(0.01)
        if self.task.done():
            await self.task
        return self

    async def chat(self, cache):
        stream = await self.server.stream(SEEDED | {"cache": cache})
        need(stream.done and stream.finish, f"a bystander's chat broke off: {stream.error}")
        return stream

    async def run(self):
        while not self.stop:
            began = time.monotonic()
            stream = await self.chat(self.count % 2 == 0)
            self.slowest = max(self.slowest, time.monotonic() - began)
            need(stream.text == Bystander.texts["alone"], f"a bystander's text changed: {brief(stream.text)} is not {brief(Bystander.texts['alone'])}")
            self.longest = max(self.longest, stream.gap)
            need(stream.gap <= self.stall, f"a bystander's stream stalled for {stream.gap:.1f} s")
            self.first = max(self.first, stream.first)
            need(stream.first <= self.patience, f"a bystander waited {stream.first:.1f} s for its first word")
            self.count += 1
            await asyncio.sleep(0.01)

    def __str__(self):
        return f"bystander: longest pause {self.longest:.2f} s, longest wait {self.first:.2f} s"

    async def __aexit__(self, kind, *_):
        if kind is None:
            # One more from begin to end, after everything.
            now = self.count
            while self.count < now + 2 and not self.task.done():
                await asyncio.sleep(0.01)
            self.stop = True
            await self.task
            need(self.server.alive, "the server died")
            need("panicked" not in self.server.log, f"the server panicked: {brief(self.server.log[-600:], 600)}")
        else:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self.task


async def one(title, function, context, limit):
    """Runs a check; its line and whether it passed (None: skipped)."""
    began = time.monotonic()
    try:
        note = await asyncio.wait_for(function(context), limit)
        verdict, line = True, "ok" + (f" ({note})" if note else "")
    except Skip as e:
        verdict, line = None, f"skipped: {e}"
    except asyncio.TimeoutError:
        verdict, line = False, f"FAILED: not done within {limit} s"
    except AssertionError as e:
        verdict, line = False, f"FAILED: {e}"
    except Exception as e:
        where = traceback.extract_tb(e.__traceback__)[-1]
        last = [t for t in traceback.extract_tb(e.__traceback__) if "faults" in t.filename][-1:] or [where]
        verdict, line = False, f"FAILED: {type(e).__name__}: {brief(str(e))} (at {Path(last[0].filename).name}:{last[0].lineno})"
    print(f"{title}: {line} [{time.monotonic() - began:.1f} s]", flush=True)
    return verdict


def self_signed(folder):
    """A certificate and key of openssl's, and a context that trusts it."""
    import shutil
    import subprocess
    if not shutil.which("openssl"):
        raise Skip("openssl is not installed")
    cert, key = f"{folder}/cert.pem", f"{folder}/key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key, tls.create_default_context(cafile=cert)
