"""Saved states and the stores behind them: killed, full, gone."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from harness import SEEDED, Bystander, Server, Skip, brief, check, need

CHAT = "/v1/chat/completions"


def talk(i):
    return [{"role": "user", "content": f"Conversation {i} about the river."}, {"role": "assistant", "content": "It is long and cold."}]


async def goes_on(s, state):
    """What a saved state says next, the same every time."""
    body = {"model": "demo", "messages": [{"role": "user", "content": "And then?"}], "state": state, "max_tokens": 24, "seed": 5}
    answer = await s.post(CHAT, body)
    return answer["choices"][0]["message"]["content"]


@check("kill -9 in the middle of streams and saves")
async def killed(context):
    rounds = 1 if context.quick else 4
    saves = 0
    async with Server() as s:
        known = {}
        for i in range(3):
            state = await s.post("/v1/states", {"model": "demo", "name": f"first {i}", "messages": talk(i)})
            known[state["id"]] = state
        fork = await s.post("/v1/states", {"model": "demo", "from": list(known)[0]})
        known[fork["id"]] = fork
        exported = (await s.ask("GET", f"/v1/states/{fork['id']}/content")).body
        imported = await s.ask("POST", "/v1/states/import?model=demo&name=in", exported, headers={"Content-Type": "application/octet-stream"})
        need(imported.status == 200, f"import: {imported}")
        known[imported.json["id"]] = imported.json
        async with Bystander(s):
            pass
        files = {id: (await s.ask("GET", f"/v1/states/{id}/content")).body for id in known}
        replies = {id: await goes_on(s, id) for id in known}

        dead, early = False, []

        async def save(number):
            while True:
                try:
                    state = await s.post("/v1/states", {"model": "demo", "name": f"later {number}", "messages": talk(100 + number) * (1 + number % 7)})
                    known[state["id"]] = state
                except Exception as e:
                    # Before it is killed every save succeeds.
                    if not dead:
                        early.append(e)
                    return
                number += 3

        for round in range(rounds):
            busy = [asyncio.create_task(save(i + 1000 * round)) for i in range(3)]
            busy += [asyncio.create_task(s.stream({"messages": talk(i)[:1], "max_tokens": 2000})) for i in range(4)]
            await asyncio.sleep(1 + 0.37 * round)
            dead = True
            s.kill(signal.SIGKILL)
            await s.died()
            await asyncio.gather(*busy, return_exceptions=True)
            need(not early, f"a state was not saved before: {early}")
            dead = False
            await s.start()
            listed = {state["id"]: state for state in (await s.get("/v1/states"))["data"]}
            gone = [id for id in known if id not in listed]
            need(not gone, f"of {len(known)} saved states {len(gone)} are gone")
            for id, state in known.items():
                need(listed[id] == state, f"a saved state is told otherwise: {listed[id]} was {state}")
            # Some may have been saved without the answer having come: they must be whole, too.
            for id in listed:
                answer = await s.ask("GET", f"/v1/states/{id}/content")
                need(answer.status == 200, f"the file of {id}: {answer}")
                need(id not in files or files[id] == answer.body, f"the file of {id} changed")
                files[id] = answer.body
                reply = await goes_on(s, id)
                need(replies.setdefault(id, reply) == reply, f"{id} goes on with {brief(reply)}, not {brief(replies[id])}")
            again = await s.ask("POST", "/v1/states/import?model=demo", files[fork["id"]], headers={"Content-Type": "application/octet-stream"})
            need(again.status == 200 and await goes_on(s, again.json["id"]) == replies[fork["id"]], f"an export of before: {again}")
            known[again.json["id"]] = again.json
            saves = len(listed)
            async with Bystander(s):
                pass
        parts = [p for p in Path(s.folder.name, "states").rglob("*") if p.is_file() and p.suffix not in (".safetensors",)]
        left = [p.name for p in parts if ".part" in p.name or ".tmp" in p.name]
        deleted = await s.ask("DELETE", f"/v1/states/{fork['id']}")
        need(deleted.status == 200 and (await s.ask("GET", f"/v1/states/{fork['id']}")).status == 404, f"delete: {deleted}")
    return f"{rounds} times, {saves} states in the end, all whole" + (f"; left behind: {len(left)} files such as {left[0]}" if left else "")


@check("a full disk")
async def full(context):
    if os.geteuid() != 0:
        raise Skip("only root can mount a small file system")
    folder = Path(context.folder, "small")
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, text=True)
    if mounted.returncode:
        raise Skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        # Next to no memory for states: they go to the folder while chats run.
        async with Server("--state-dir", str(folder), "--state-memory", "2") as s:
            async with Bystander(s):
                ids, refused = [], None
                for i in range(200):
                    answer = await s.ask("POST", "/v1/states", {"model": "demo", "messages": talk(i)})
                    if answer.status != 200:
                        refused = answer
                        break
                    ids.append(answer.json["id"])
                need(refused is not None, "the disk never filled up")
                need(refused.status == 507 and re.search("space|full", refused.message), f"a full disk: {refused}")
                # To the last byte.
                with contextlib.suppress(OSError), open(folder / "filler", "wb", buffering=0) as f:
                    while True:
                        f.write(bytes(4096))
                size = os.stat(folder / "filler").st_size
                for i in range(3):
                    answer = await s.ask("POST", "/v1/states", {"model": "demo", "messages": talk(300 + i)})
                    need(answer.status == 507, f"a full disk: {answer}")
                file = (await s.ask("GET", f"/v1/states/{ids[0]}/content")).body
                answer = await s.ask("POST", "/v1/states/import?model=demo", file, headers={"Content-Type": "application/octet-stream"})
                import_status = answer.status
                need(answer.status >= 500 and answer.message, f"an import onto a full disk: {answer}")
                # Chats whose states leave memory go on.
                for i in range(12):
                    body = {"model": "demo", "messages": talk(400 + i)[:1] + [{"role": "assistant", "content": "x " * 80}, {"role": "user", "content": "And?"}], "max_tokens": 8, "seed": 1}
                    first = (await s.post(CHAT, body))["choices"][0]["message"]["content"]
                    alone = (await s.post(CHAT, body | {"cache": False}))["choices"][0]["message"]["content"]
                    need(first == alone, f"beside a full disk a reply is {brief(first)}, not {brief(alone)}")
                for id in ids:
                    need((await s.ask("GET", f"/v1/states/{id}/content")).status == 200, f"{id} cannot be read")
                need(len((await s.get("/v1/states"))["data"]) == len(ids), "states that were not saved are listed")
            # Stopped and started, on a disk that is still full.
            s.kill(signal.SIGTERM)
            need(await s.died(30) == 0, "the exit code on a full disk is not 0")
            await s.start()
            async with Bystander(s):
                need(len((await s.get("/v1/states"))["data"]) == len(ids), "after a restart on a full disk states are missing")
                os.unlink(folder / "filler")
                deleted = await s.ask("DELETE", f"/v1/states/{ids.pop()}")
                need(deleted.status == 200, f"delete: {deleted}")
                answer = await s.ask("POST", "/v1/states", {"model": "demo", "messages": talk(500)})
                need(answer.status == 200, f"with room again: {answer}")
                await goes_on(s, answer.json["id"])
            # What was half written does not lie around.
            part = [p.name for p in folder.rglob("*.part")] + [p.name for p in folder.rglob("*.tmp")]
            need(not part, f"left behind: {part}")
            s.kill(signal.SIGTERM)
            need(await s.died(30) == 0, "the exit code is not 0")
            await s.start()
            need(len((await s.get("/v1/states"))["data"]) == len(ids) + 1, "after a restart states are missing")
    finally:
        subprocess.run(["umount", "-l", str(folder)], capture_output=True)
    need(import_status == 507, f"an import onto a full disk is answered with {import_status}, not 507")
    return f"{len(ids)} states fitted; the filler took {size >> 10} kB"


class Redis:
    """A redis-server that comes and goes."""

    def __init__(self, folder):
        self.folder, self.process = folder, None
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"

    async def start(self):
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", self.folder]
        self.process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            await asyncio.sleep(0.05)
        raise AssertionError("redis-server did not start")

    async def stop(self, how=signal.SIGKILL):
        if self.process and self.process.returncode is None:
            self.process.send_signal(how)
            if how == signal.SIGKILL:
                await self.process.wait()


def has_redis(program):
    """Whether the program was built with Redis."""
    command = [program, "serve", "--port", "0", "--no-state-dir", "--state-store", "nonsense://x"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20).stderr
    except subprocess.TimeoutExpired:
        return True
    return "--features redis" not in said


@check("Redis shared by two servers, gone, frozen and back", background=True)
async def redis(context):
    if not shutil.which("redis-server"):
        raise Skip("redis-server is not installed (Debian: apt-get install redis-server)")
    if not await asyncio.to_thread(has_redis, Server.program):
        raise Skip("this hawfinch is built without --features redis")
    store = Redis(context.folder)
    await store.start()
    number = 0

    async def across(a, b, shared):
        """A conversation that begins at `a` and goes on at `b`, which must know it when the store is there."""
        nonlocal number
        number += 1
        limit = 60 if shared else 20
        messages = [{"role": "user", "content": f"{number}: " + "The river runs under the old house. " * 20}]
        ask = {"max_tokens": 40, "seed": number}
        first = await a.stream(ask | {"messages": messages}, timeout=limit)
        messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And then?"}]
        # It is written behind the reply.
        for _ in range(20 if shared else 1):
            await asyncio.sleep(0.1)
            began = time.monotonic()
            second = await b.stream(ask | {"messages": messages}, timeout=limit)
            took = time.monotonic() - began
            alone = await b.stream(ask | {"messages": messages, "cache": False})
            need(second.text == alone.text, f"a shared state says {brief(second.text)}, alone it is {brief(alone.text)}")
            if second.cached or not shared:
                break
            # What b computed itself it knows from now on: another question.
            messages[-1] = {"role": "user", "content": f"And then, {_}?"}
        need(not shared or second.cached > 0, "the second server knew nothing of the first one's conversation")
        return took

    options = ("--no-state-dir", "--state-store", store.url)
    try:
        async with Server(*options) as a, Server(*options) as b:
            async with Bystander(a, first=15), Bystander(b, first=15):
                await across(a, b, True)
                await across(b, a, True)
                await store.stop()
                for _ in range(3):
                    dead = await across(a, b, False)
                need(dead < 10, f"with Redis gone a chat took {dead:.1f} s")
                await store.start()
                until = time.monotonic() + 90
                while True:
                    try:
                        await across(a, b, True)
                        break
                    except AssertionError:
                        if time.monotonic() > until:
                            raise
                # It accepts connections and says nothing: worse than gone. Requests are on their way at that moment.
                busy = [asyncio.create_task(across(a, b, False)) for _ in range(4)]
                await asyncio.sleep(0.02)
                await store.stop(signal.SIGSTOP)
                await asyncio.gather(*busy)
                frozen = [await across(a, b, False) for _ in range(2)]
                # By now it is tried again, with a connection of its own that is taken and never answered.
                await asyncio.sleep(4)
                frozen += [await across(a, b, False) for _ in range(2)]
                need(max(frozen) < 15, f"with Redis frozen a chat took {max(frozen):.1f} s")
                await store.stop(signal.SIGCONT)
                until = time.monotonic() + 90
                while True:
                    try:
                        await across(b, a, True)
                        break
                    except AssertionError:
                        if time.monotonic() > until:
                            raise
            # Frozen while nothing is under way: the next request is the first to notice.
            await across(a, b, True)
            await asyncio.sleep(1)
            await store.stop(signal.SIGSTOP)
            noticed = await across(a, b, False)
            need(noticed < 15, f"the first chat after Redis froze took {noticed:.1f} s")
            await store.stop(signal.SIGCONT)
        # A server starts without its store, too.
        await store.stop()
        async with Server(*options) as a, Bystander(a):
            await a.stream(SEEDED)
    finally:
        await store.stop(signal.SIGCONT)
        await store.stop()
    return f"a chat took {dead:.2f} s while it was gone, {max(frozen):.2f} s while it was frozen"
