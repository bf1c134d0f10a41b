"""Connections that hold on, TLS, keys, hosts and origins, and being told to stop. Each check has a server of its own."""

import asyncio
import contextlib
import json
import signal
import ssl
import time

from harness import SEEDED, Broken, Bystander, Connection, Server, Skip, brief, check, need, self_signed

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
# Within this a server lets go of who sends nothing: its limit is 30 s, twice that is generous.
PATIENCE = 60


async def closes(connection, what):
    """The server ends the connection in time, with a 408 or 400 or without a word."""
    try:
        said = await connection.ended(PATIENCE)
    except asyncio.TimeoutError:
        raise AssertionError(f"{what}: still open after {PATIENCE} s") from None
    finally:
        connection.close()
    status = said.split(b" ")[1:2]
    need(not said or status in ([b"408"], [b"400"]), f"{what}: {brief(said)}")


@check("1,000 connections that send nothing, half a head, or nothing more", background=True)
async def half_open(context):
    async with Server() as s:
        connections = []
        for i in range(1000):
            connection = await Connection.open(s)
            if i % 3 == 1:
                await connection.send(s.head("POST", CHAT, None, 1000)[: 40 + i % 20])
            if i % 3 == 2:
                await connection.send(s.head("GET", "/health"))
                await connection.answer()
            connections.append(connection)
        began = time.monotonic()
        async with Bystander(s) as by:
            await asyncio.gather(*(closes(c, ("nothing", "half a head", "nothing more")[i % 3]) for i, c in enumerate(connections)))
            took = time.monotonic() - began
        open_now = [line for line in (await s.ask("GET", "/metrics")).body.decode().splitlines() if line.startswith("hawfinch_http_connections ")]
        need(int(float(open_now[0].split()[1])) <= 2, f"connections counted as open: {open_now}")
    return f"all closed within {took:.0f} s, {by.count} chats beside them"


@check("all connections taken by clients that send nothing", background=True)
async def all_taken(context):
    async with Server("--max-connections", "20") as s:
        connections = [await Connection.open(s) for _ in range(20)]
        await asyncio.sleep(0.5)
        began = time.monotonic()
        answer = await s.ask("GET", "/health", timeout=PATIENCE)
        need(answer.status == 200, f"{answer}")
        took = time.monotonic() - began
        for connection in connections:
            connection.close()
        async with Bystander(s):
            pass
    return f"the next client waited {took:.0f} s"


@check("a head or body of a byte a second", background=True)
async def slow_body(context):
    async def trickle(s, kind):
        connection = await Connection.open(s)
        chunked = kind == 1
        framing = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": "1000"}
        # Of the third kind the head itself never ends.
        head = s.head("POST", CHAT, {"Content-Type": "application/json"} | framing)
        await connection.send(head[:-2] if kind == 2 else head)
        answer = asyncio.ensure_future(connection.answer())
        began = time.monotonic()
        try:
            while not answer.done() and time.monotonic() - began < PATIENCE:
                with contextlib.suppress(ConnectionError):
                    await connection.send(b"1\r\n{\r\n" if chunked else b"{")
                await asyncio.wait([answer], timeout=1)
            need(answer.done(), f"still open after {PATIENCE} s")
            with contextlib.suppress(Broken, ConnectionError):
                need((await answer).status in (400, 408), f"{answer.result()}")
        finally:
            answer.cancel()
            connection.close()
        return time.monotonic() - began

    async with Server() as s, Bystander(s):
        times = await asyncio.gather(*(trickle(s, i % 3) for i in range(60)))
    return f"60 of them, let go after {max(times):.0f} s"


@check("a client that reads nothing of a long reply", background=True)
async def no_reader(context):
    if context.quick:
        raise Skip("two minutes, not with --quick")
    async with Server() as s, Bystander(s):
        connection = await Connection.open(s, limit=2048)
        long = {"model": "demo", "stream": True, "messages": HELLO, "max_tokens": 4096, "logit_bias": {"0": -100}, "logprobs": True, "top_logprobs": 20}
        body = json.dumps(long).encode()
        await connection.send(s.head("POST", CHAT, None, len(body)) + body)
        await connection.head()
        connection.writer.transport.pause_reading()
        began = time.monotonic()
        while True:
            page = (await s.ask("GET", "/metrics")).body.decode()
            # This one's own alone, at a moment between two of the bystander's chats.
            if float(page.split("\nhawfinch_http_connections ")[1].split()[0]) <= 1:
                break
            need(time.monotonic() - began < 240, "its connection is still held after 240 s")
            await asyncio.sleep(0.2)
        took = time.monotonic() - began
        connection.close()
        # Otherwise the reply was too short to fill what the system keeps for a reader, and nothing was tried.
        need(took > 10, f"let go after {took:.1f} s: too soon, a slow reader is no dead one")
    return f"let go after {took:.0f} s"


@check("wrong and missing keys on every route")
async def keys(context):
    async with Server("--allow-load", env={"HAWFINCH_API_KEY": "right key"}, key="right key") as s:
        async with Bystander(s):
            paths = (await s.get("/openapi.json"))["paths"]
            count = 0
            for path, methods in paths.items():
                for method in methods:
                    for key in (None, "", "Bearer", "Bearer ", "Bearer wrong", "Bearer right", "Bearer right keyy", "Basic right key", "Bearer \xff\xfe", "Bearer " + "x" * 10_000):
                        body = b"{}" if method == "post" else None
                        answer = await s.ask(method.upper(), path.replace("{id}", "demo"), body, headers={"Authorization": key})
                        need(answer.status == 401, f"{method} {path} with the key {brief(key)}: {answer}")
                        error = answer.json["error"]
                        need(error["message"] and "right key" not in answer.body.decode(), f"{answer}")
                        count += 1
            for path in ("/nothing", "/v1/nothing", "//v1/models", "/V1/models", "/v1/models/", "/v1/../v1/models", "/app.js/../v1/models", "/docs/../metrics"):
                answer = await s.ask("GET", path, headers={"Authorization": None})
                need(answer.status in (401, 404), f"{path} without a key: {answer}")
                need(b'"data"' not in answer.body, f"{path} tells something without a key")
            # A large body is not read for who has no key.
            answer = await s.ask("POST", CHAT, b"x" * (8 << 20), headers={"Authorization": None})
            need(answer.status == 401, f"8 MB without a key: {answer}")
            for headers in ({"Authorization": "bearer right key"}, {"Authorization": None, "x-api-key": "right key"}):
                answer = await s.ask("GET", "/v1/models", headers=headers)
                need(answer.status == 200, f"{headers}: {answer}")
            for path in ("/", "/docs", "/app.js"):
                answer = await s.ask("GET", path, headers={"Authorization": None})
                need(answer.status == 200, f"the page's {path} without a key: {answer.status}")
            need("right key" not in s.log, "the key is in the log")
    return f"{count} requests on {len(paths)} routes"


@check("hosts and origins that are not the server's")
async def hosts(context):
    async with Server("--cors", "https://ok.example", "--host-name", "own.example") as s, Bystander(s):
        body = json.dumps({"model": "demo", "messages": HELLO, "max_tokens": 2}).encode()
        for host, status in [("evil.example", 421), ("127.0.0.1.evil.example", 421), ("", 421), (None, 421), ("evil.example:80", 421), ("[::1]", 200),
                             ("localhost", 200), ("LOCALHOST:1", 200), ("own.example", 200), ("own.example:7", 200), ("xown.example", 421), ("\xe4", 421)]:
            answer = await s.ask("POST", CHAT, body, headers={"Host": host})
            # Without any host HTTP/1.1 is broken, too.
            need(answer.status == status or (not host and answer.status == 400), f"host {host!r}: {answer}, not {status}")
        both = await s.raw(s.head("GET", "/v1/models", {"Host": "localhost"}).replace(b"\r\n\r\n", b"\r\nHost: evil.example\r\n\r\n"))
        need(both is None or both.status in (200, 400, 421), f"two hosts: {both}")
        for origin, status in [("https://evil.example", 403), ("null", 403), ("https://ok.example.evil.example", 403), ("http://ok.example", 403),
                               ("https://ok.example", 200), (f"http://127.0.0.1:{s.port}", 200), (f"http://127.0.0.1:{s.port + 1}", 403)]:
            answer = await s.ask("POST", CHAT, body, headers={"Origin": origin})
            need(answer.status == status, f"origin {origin}: {answer}, not {status}")
            allowed = answer.headers.get("access-control-allow-origin")
            need(allowed == ("https://ok.example" if origin == "https://ok.example" else None), f"origin {origin}: allowed is {allowed}")
            ask = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
            answer = await s.ask("OPTIONS", CHAT, headers=ask)
            if origin == "https://ok.example":
                headers = answer.headers
                need(answer.status == 204 and headers["access-control-allow-origin"] == origin, f"preflight: {answer} {headers}")
                need("POST" in headers["access-control-allow-methods"] and "authorization" in headers["access-control-allow-headers"], f"preflight: {headers}")
            else:
                need("access-control-allow-origin" not in answer.headers, f"preflight of {origin}: {answer.headers}")


@check("TLS with a certificate of its own, and who speaks no TLS to it", background=True)
async def encrypted(context):
    cert, key, trusted = self_signed(context.folder)
    async with Server("--tls-cert", cert, "--tls-key", key, ssl=trusted) as s:
        async with Bystander(s):
            async def no_tls(data):
                connection = await Connection.open(s)
                await connection.send(data)
                try:
                    said = await connection.ended(PATIENCE)
                except asyncio.TimeoutError:
                    raise AssertionError(f"{brief(data, 20)} to the TLS port: still open after {PATIENCE} s") from None
                need(b"HTTP/" not in said, f"plain HTTP was answered: {brief(said)}")
                connection.close()

            plain = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
            await asyncio.gather(*map(no_tls, (plain, bytes(5000), b"\x16\x03\x01\x40\x00" + b"x" * 100, b"\x16\x03\x01", b"")))
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                only = ssl.create_default_context(cafile=cert)
                only.minimum_version = only.maximum_version = version
                connection = await Connection.open(s, only)
                await connection.send(s.head("GET", "/health"))
                need((await connection.answer()).status == 200, f"{version.name}")
                connection.close()
            strict = ssl.create_default_context()
            try:
                await Connection.open(s, strict)
                raise AssertionError("a certificate that nobody trusts was trusted")
            except ssl.SSLCertVerificationError:
                pass
            # Handshakes that stop half-way do not stop others.
            stuck = [await Connection.open(s) for _ in range(100)]
            for connection in stuck:
                await connection.send(b"\x16\x03\x01\x02\x00\x01")
            need((await s.get("/health"))["status"] == "ok", "beside stuck handshakes")
            for connection in stuck:
                connection.close()


@check("SIGTERM in the middle of streams")
async def terminated(context):
    grace = 3
    async with Server("--grace", str(grace), "--max-tokens", "1000000") as s:
        async with Bystander(s):
            pass
        begun = asyncio.Event()
        going = 0

        def note(stream):
            nonlocal going
            if stream.times and not hasattr(stream, "noted"):
                stream.noted = True
                going += 1
                if going == 5:
                    begun.set()

        # Token 0 ends a text: forbidden, these never end by themselves.
        endless = {"messages": HELLO, "max_tokens": 1_000_000, "logit_bias": {"0": -100}, "template": "completion"}
        streams = [asyncio.create_task(s.stream(endless, note)) for _ in range(4)]
        streams.append(asyncio.create_task(s.stream(SEEDED, note)))
        whole = asyncio.create_task(s.ask("POST", CHAT, {"model": "demo", "cache": False} | endless))
        await asyncio.wait_for(begun.wait(), 60)
        kept = await Connection.open(s)
        await kept.send(s.head("GET", "/health"))
        await kept.answer()
        began = time.monotonic()
        s.kill(signal.SIGTERM)
        await asyncio.sleep(0.5)
        try:
            answer = await s.ask("GET", "/health", timeout=10)
            need(answer.status == 503, f"a new client after SIGTERM: {answer}")
        except (Broken, ConnectionError, asyncio.IncompleteReadError):
            pass
        results = await asyncio.gather(*streams)
        took = time.monotonic() - began
        need(took < grace + 5, f"the streams ended {took:.1f} s after SIGTERM, grace was {grace} s")
        for stream in results[:4]:
            need(stream.done and stream.finish == "length" and stream.usage, f"cut off without a proper end: {stream.finish} {stream.error} {stream.usage}")
        need(results[4].done and results[4].text == Bystander.texts["alone"], f"a short reply was not finished: {brief(results[4].text)}")
        answer = await whole
        need(answer.status == 200 and answer.json["choices"][0]["finish_reason"] == "length", f"a reply that is not streamed: {answer}")
        code = await s.died(grace + 10)
        need(code == 0, f"the exit code is {code}")
        need("panicked" not in s.log, f"the server panicked: {brief(s.log[-600:], 600)}")
        # Idle, it goes at once; and what it saved is known again.
        await s.start()
        await s.get("/health")
        again = await s.stream(SEEDED)
        need(again.text == Bystander.texts["alone"], f"after the restart: {brief(again.text)}")
        began = time.monotonic()
        s.kill(signal.SIGTERM)
        need(await s.died(20) == 0, "the exit code of an idle server is not 0")
        idle = time.monotonic() - began
        need(idle < 3, f"an idle server took {idle:.1f} s to stop")
    return f"streams ended after {took:.1f} s of {grace} s grace, idle after {idle:.1f} s"
