"""Requests that are wrong, too large or made to hurt. Each runs on the shared server beside a bystander."""

import asyncio
import json
import time

from harness import Bystander, Connection, brief, check, need

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def chat(**more):
    return {"model": "demo", "messages": HELLO, "max_tokens": 4, "seed": 1} | more


async def all_of(awaitables):
    """Runs them one by one; fails with what all failures say, not with the first alone."""
    failures = []
    for one in awaitables:
        try:
            await one
        except AssertionError as e:
            failures.append(brief(str(e), 160))
    need(not failures, f"{len(failures)} answers are wrong: " + "; ".join(failures[:6]))


async def expect(server, path, body, status, what, timeout=60):
    """An answer of that status (or one of these), its error in the API's shape."""
    wanted = (status,) if isinstance(status, int) else status
    answer = await server.ask("POST", path, body, timeout=timeout)
    need(answer.status in wanted, f"{what}: {answer}, not {' or '.join(map(str, wanted))}")
    if answer.status != 200:
        answer.message
    return answer


@check("bodies that are no JSON or not the right JSON")
async def bad_json(context):
    base = json.dumps(chat()).encode()
    deep = 100_000
    cases = {
        "nothing": b"", "a word": b"hello", "half": base[:-5], "two": base + base, "a list": b"[]", "null": b"null",
        "NaN": base[:-1] + b', "temperature": NaN}', "bytes that are not UTF-8": base.replace(b"Hello", b"\xff\xfe\x80"),
        "an overlong form": base.replace(b"Hello", b"\xc0\xaf"), "a lone surrogate": base.replace(b"Hello", b"\\ud800"),
        "a control character": base.replace(b"Hello", b"a\x01b"), "UTF-16": json.dumps(chat()).encode("utf-16"),
        "deep lists": b"[" * deep, "deep objects": b'{"a":' * deep, "a deep field": base[:-1] + b', "x": ' + b"[" * deep + b"]" * deep + b"}",
        "a deep schema": base[:-1] + b', "guided_json": ' + b'{"not":' * deep + b"{}" + b"}" * deep + b"}",
        "a number of 10,000 digits": base[:-1] + b', "seed": ' + b"9" * 10_000 + b"}",
        "no model": b'{"messages": []}', "no messages": b'{"model": "demo"}', "messages of numbers": b'{"model": "demo", "messages": [1, 2]}',
        "another role": json.dumps(chat(messages=[{"role": "king", "content": "x"}])).encode(),
        "an image": json.dumps(chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])).encode(),
        "no message": json.dumps(chat(messages=[])).encode(), "the key twice": base[:-1] + b', "model": "demo"}',
        "text where numbers stand": json.dumps(chat(temperature="hot")).encode(),
    }
    async with Bystander(context.server):
        await all_of([expect(context.server, CHAT, body, 400, what) for what, body in cases.items()])
        answer = await context.server.ask("POST", CHAT, base, headers={"Content-Type": "text/plain"})
        need(answer.status == 415, f"another type: {answer}")
        for what, text in {"a NUL": "a\0b", "the whole of Unicode's ends": "\uffff\U0010ffff\u200f\u0301", "nothing": "", "spaces": " \n\t"}.items():
            await expect(context.server, CHAT, chat(messages=[{"role": "user", "content": text}]), 200, f"a text of {what}")
        await expect(context.server, CHAT, chat(model="no such\n\x1b[31mmodel" * 1000), 404, "an unknown model")
    return f"{len(cases) + 6} bodies"


@check("numbers out of range and ids that are none")
async def numbers(context):
    s = context.server
    async with Bystander(s):
        wrong = [{"temperature": -1}, {"temperature": 1e39}, {"temperature": "1e999"}, {"top_p": 2}, {"top_p": -0.1}, {"min_p": 7}, {"n": 0}, {"n": 65},
                 {"n": -1}, {"n": 10**30}, {"max_tokens": -1}, {"max_tokens": 1.5}, {"max_tokens": 10**30}, {"seed": 2**64}, {"seed": 0.5},
                 {"top_logprobs": 21, "logprobs": True}, {"top_logprobs": 3}, {"penalty_decay": 2}, {"repetition_penalty": 0},
                 {"repetition_penalty": -1}, {"presence_penalty": 1e300}, {"logit_bias": {"x": 1}}, {"logit_bias": {"1": 101}},
                 {"logit_bias": {"-1": 1}}, {"logit_bias": {"99999999": 1}}, {"logit_bias": {"4294967296": 1}}, {"stop": [""]}]
        ids = [[99_999_999], [-1], [10**20], [1.5], [[1, 99_999_999]], [2**32], ["a", 1]]
        await all_of([expect(s, CHAT, chat(**more), 400, brief(more)) for more in wrong]
                     + [expect(s, "/v1/completions", {"model": "demo", "prompt": p, "max_tokens": 1}, 400, f"prompt {p}") for p in ids]
                     + [expect(s, "/detokenize", {"tokens": t}, 400, f"detokenize {t}") for t in ([99_999_999], [-1], [2**32], "x")])
        for more in [{"max_tokens": 2**63, "stop": "e"}, {"top_k": -(2**63)}, {"top_k": 2**40}, {"seed": -(2**63)}, {"temperature": 0}, {"top_p": 0},
                     {"temperature": 1e-30}, {"max_tokens": 0}]:
            await expect(s, CHAT, chat(**more), (200, 400), brief(more), timeout=120)
        huge = await s.ask("POST", CHAT, json.dumps(chat()).encode()[:-1] + b', "temperature": 1e999}')
        need(huge.status == 400, f"1e999: {huge}")
        await expect(s, "/v1/completions", {"model": "demo", "prompt": ["a"] * 100_000, "max_tokens": 1}, (400, 413), "100,000 prompts")
        banned = {str(i): -100 for i in range(70_000)}
        await expect(s, CHAT, chat(logit_bias=banned), 400, "all tokens banned")
        for path in ["/v1/states/..%2f..%2fetc%2fpasswd", "/v1/states/state-0000000000000000", "/v1/states/state-%00", "/v1/responses/x",
                     "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/app.js/..", "/v1/models/%ff%fe"]:
            answer = await s.ask("GET", path)
            need(answer.status in (400, 404), f"GET {path}: {answer}")
    return f"{len(wrong) + 30} requests"


@check("1,000 stop strings, long ones, and as many as are taken")
async def stop_strings(context):
    async with Bystander(context.server):
        await expect(context.server, CHAT, chat(stop=[f"stop {i}" for i in range(1000)]), (200, 400), "1,000 stop strings")
        await expect(context.server, CHAT, chat(stop="x" * 1_000_000), (200, 400), "a stop string of 1 MB")
        await expect(context.server, CHAT, chat(stop=["a" * 200 + str(i) for i in range(64)], max_tokens=40), 200, "64 of 200 characters")
        await expect(context.server, CHAT, chat(stop=["\U0001f426" * 9, "\0", "\n\n\n"], max_tokens=20), 200, "odd ones")


@check("grammars that nothing meets and regular expressions made to explode")
async def grammars(context):
    s = context.server
    before = s.rss()
    bombs = ["(a{1000}){1000}", "((((a*)*)*)*)*b", "(.{0,1000}){0,1000}", "(x+x+)+y", "(" * 5000 + ")" * 5000, "[^\\s\\S]", "(", "a{99999999}",
             "(?=a)b", "\\p{L}{1,10000}", "|".join(f"word{i}" for i in range(20_000)), "(" + "|".join("ab" * i for i in range(1, 200)) + "){500}"]
    schemas = [{"type": "integer", "minimum": 5, "maximum": 1}, {"not": {}}, False, {"enum": []}, {"$ref": "#"}, {"$ref": "http://127.0.0.1:1/x"},
               {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, {"type": "string", "pattern": "(a{1000}){1000}"},
               {"type": "array", "minItems": 10**9, "items": {"type": "null"}}, {"type": "string", "minLength": 10**9},
               {"anyOf": [{"const": f"x{i}"} for i in range(5000)]}, {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(5000)}}]
    nested = {}
    for _ in range(60):
        nested = {"type": "object", "properties": {"a": nested, "b": nested if len(str(nested)) < 100_000 else {}}, "required": ["a", "b"]}
    larks = ["start: start", "start: nothing", "start: \"a\" start start | start start start", "", "start: /(a{1000}){1000}/", "start: " + "x" * 100_000]
    requests = [("guided_regex", r) for r in bombs] + [("guided_json", j) for j in schemas + [nested]] + [("guided_grammar", g) for g in larks]
    slow, most = "", 0
    async with Bystander(s) as by:
        for field, value in requests:
            began = time.monotonic()
            answer = await expect(s, CHAT, chat(**{field: value, "max_tokens": 8}), (200, 400), f"{field} {brief(value, 60)}", timeout=30)
            took = time.monotonic() - began
            if took > most:
                slow, most = brief(value, 30), took
        # Several of the slow ones at once.
        wide = [{"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(2000 + n)}} for n in range(6)]
        await asyncio.gather(*(expect(s, CHAT, chat(guided_json=w), (200, 400), "six wide schemas at once", timeout=120) for w in wide))
        answer = await s.ask("POST", CHAT, chat(guided_regex="(yes|no)", max_tokens=8))
        need(answer.json["choices"][0]["message"]["content"] in ("yes", "no"), f"a grammar after them: {answer}")
        grown = s.rss() - before
        need(grown < 400, f"memory grew by {grown:.0f} MB")
    return f"{len(requests)} grammars, slowest {most:.1f} s ({slow}), memory +{grown:.0f} MB; {by}"


@check("very many messages in a request")
async def many_messages(context):
    messages = [{"role": ("user", "assistant")[i % 2], "content": f"{i}"} for i in range(20_001)]
    count, empty = (2_001, 1_000) if context.quick else (20_001, 20_000)
    async with Bystander(context.server) as by:
        await expect(context.server, CHAT, chat(messages=messages[:count]), 200, f"{count} messages", timeout=400)
        await expect(context.server, CHAT, chat(messages=[{"role": "user"}] * empty), (200, 400), f"{empty} empty messages", timeout=400)
        await expect(context.server, CHAT, chat(tools=[{"type": "function", "function": {"name": f"f{i}"}} for i in range(10_000)]), 400, "10,000 tools")
    return f"{count} messages; {by}"


@check("a prompt of 200,000 tokens while others stream")
async def long_prompt(context):
    s = context.server
    wanted = 10_000 if context.quick else 200_000
    text = "The river runs under the old house and the night is long. "
    per = (await s.post("/tokenize", {"prompt": text * 100}))["count"] / 100
    began = time.monotonic()
    async with Bystander(s) as by:
        body = {"model": "demo", "prompt": text * int(wanted / per + 20), "max_tokens": 2}
        answer = await s.ask("POST", "/v1/completions", body, timeout=500)
        need(answer.status == 200, f"{answer}")
        tokens = answer.json["usage"]["prompt_tokens"]
        need(tokens >= wanted, f"the prompt had {tokens} tokens only")
    return f"{tokens} tokens in {time.monotonic() - began:.0f} s, {by.count} chats beside it; {by}"


@check("bodies of 100 MB: refused, and no memory for them")
async def large_bodies(context):
    s = context.server
    size = 100 << 20
    piece = b'{"model":"' + b"x" * (1 << 20)

    async def refused(chunked):
        connection = await Connection.open(s)
        try:
            headers = {"Content-Type": "application/json"}
            headers |= {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(size)}
            await connection.send(s.head("POST", CHAT, headers))
            answer = asyncio.ensure_future(connection.answer())
            sent = 0
            try:
                while sent < size and not answer.done():
                    await connection.send((b"%x\r\n%s\r\n" % (len(piece), piece)) if chunked else piece)
                    sent += len(piece)
            except ConnectionError:
                pass
            try:
                answer = await asyncio.wait_for(answer, 30)
            except ConnectionError as e:
                # What is closed while it is written to may take its last words with it.
                return f"reset after {sent >> 20} MB: {e}"
            need(answer.status == 413, f"{'in chunks' if chunked else 'with a length'}: {answer}")
            answer.message
            return None
        finally:
            connection.close()

    async with Bystander(s):
        # What a bystander alone takes is not the bodies' fault.
        before = s.rss()
        resets = []
        for chunked in (False, True):
            resets += [r for r in await asyncio.gather(*(refused(chunked) for _ in range(8))) if r]
        grown = s.rss() - before
        # Each may fill the limit of 16 MB before it is refused; that must be given back.
        need(grown < 64, f"memory grew by {grown:.0f} MB")
    need(len(resets) < 12, f"of 16 clients {len(resets)} never read why: {resets[0] if resets else ''}")
    return f"16 bodies, memory {grown:+.0f} MB, {len(resets)} connections reset before the answer was read"


@check("heads that are too large, broken or contradict themselves; methods that nobody knows")
async def heads(context):
    s = context.server
    body = json.dumps(chat()).encode()
    host = f"Host: 127.0.0.1:{s.port}\r\n".encode()
    async with Bystander(s):
        for what, head in {
            "a header of 200 kB": s.head("GET", "/health", {"X-Long": "x" * 200_000}),
            "500 headers": s.head("GET", "/health", {f"X-{i}": "x" for i in range(500)}),
            "a path of 200 kB": s.head("GET", "/" + "x" * 200_000),
            "a NUL in a header": s.head("GET", "/health", {"X-Nul": "a\0b"}),
            "a space before the colon": b"GET /health HTTP/1.1\r\n" + host + b"X-A : b\r\n\r\n",
            "no version": b"GET /health\r\n\r\n",
            "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            "HTTP/3.1": b"GET /health HTTP/3.1\r\n" + host + b"\r\n",
            "noise": bytes(range(256)) * 20,
            "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
            "two lengths": b"POST " + CHAT.encode() + b" HTTP/1.1\r\n" + host + b"Content-Type: application/json\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n" + body,
            "a negative length": b"POST " + CHAT.encode() + b" HTTP/1.1\r\n" + host + b"Content-Length: -1\r\n\r\n" + body,
            "a length beyond numbers": b"POST " + CHAT.encode() + b" HTTP/1.1\r\n" + host + b"Content-Length: 99999999999999999999999\r\n\r\n" + body,
        }.items():
            answer = await s.raw(head)
            need(answer is None or 400 <= answer.status < 500 or answer.status == 505, f"{what}: {answer}")
        both = s.head("POST", CHAT, {"Content-Type": "application/json", "Content-Length": "4", "Transfer-Encoding": "chunked"})
        answer = await s.raw(both + b"0\r\n\r\nGET /health HTTP/1.1\r\n" + host + b"\r\n")
        need(answer is None or answer.status >= 400, f"length and chunks at once: {answer}")
        for size in (b"zz", b"-5", b"fffffffffffffffff", b"5;" + b"x" * 100_000):
            head = s.head("POST", CHAT, {"Content-Type": "application/json", "Transfer-Encoding": "chunked"})
            answer = await s.raw(head + size + b"\r\nhello\r\n0\r\n\r\n")
            need(answer is None or 400 <= answer.status < 500, f"a chunk of {brief(size)} bytes: {answer}")
        for method in ("PUT", "PATCH", "DELETE", "TRACE", "CONNECT", "PROPFIND", "FOO", "get", "G\tT"):
            for path in (CHAT, "/health", "*"):
                answer = await s.raw(s.head(method, path))
                need(answer is None or answer.status in (400, 404, 405, 501), f"{method} {path}: {answer}")
        answer = await s.ask("PUT", CHAT)
        need(answer.status == 405 and "PUT" in answer.message, f"PUT: {answer}")
        answer = await s.ask("POST", CHAT, body, headers={"Expect": "100-continue"})
        need(answer.status == 200, f"100-continue: {answer}")
        # Several requests in one packet are answered in order.
        connection = await Connection.open(s)
        await connection.send(s.head("GET", "/health") + s.head("POST", CHAT, None, len(body)) + body + s.head("GET", "/nothing"))
        statuses = [(await connection.answer()).status for _ in range(3)]
        connection.close()
        need(statuses == [200, 200, 404], f"requests in one packet: {statuses}")


@check("a client that reads a byte a second while others chat")
async def slow_reader(context):
    s = context.server
    import socket
    seconds = 5 if context.quick else 20
    body = json.dumps({"model": "demo", "stream": True, "messages": HELLO, "max_tokens": 3000, "seed": 1}).encode()
    sockets = []
    loop = asyncio.get_running_loop()
    async with Bystander(s) as alone:
        for _ in range(4):
            await asyncio.sleep(0.5)
    try:
        for _ in range(8):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", s.port))
            await loop.sock_sendall(sock, s.head("POST", CHAT, None, len(body)) + body)
            sockets.append(sock)
        async with Bystander(s) as by:
            for _ in range(seconds):
                for sock in sockets:
                    need(await loop.sock_recv(sock, 1), "the server closed on a slow reader")
                await asyncio.sleep(1)
            # The others' replies end although nobody reads them; then the bystander has the server for itself.
            need(by.count >= 2, f"the bystander came to {by.count} chats in {seconds} s")
    finally:
        for sock in sockets:
            sock.close()
    await s.idle()
    return f"8 of them, {seconds} s; a bystander's slowest chat {by.slowest:.2f} s, before {alone.slowest:.2f} s"


@check("200 clients that leave in the middle of a stream")
async def leavers(context):
    s = context.server
    body = json.dumps({"model": "demo", "stream": True, "messages": HELLO, "max_tokens": 3000, "logit_bias": {"0": -100}}).encode()

    async def leave(i):
        connection = await Connection.open(s)
        await connection.send(s.head("POST", CHAT, None, len(body)) + body)
        if i % 2:
            await asyncio.wait_for(connection.reader.read(400), 60)
        connection.close()

    async with Bystander(s):
        for _ in range(4):
            await asyncio.gather(*(leave(i) for i in range(50)))
            await asyncio.sleep(0.2)
    await s.idle(15)
