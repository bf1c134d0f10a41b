"""What the tests share: the servers that `run` started, clients of them, servers of their own."""

import contextlib
import json
import os
import re
import subprocess
import time
from pathlib import Path

import anthropic
import openai
import pytest
import requests

MODEL = "demo"
URL = os.environ["HAWFINCH_URL"]
KEYED_URL = os.environ["HAWFINCH_KEYED_URL"]
KEY = os.environ["HAWFINCH_KEY"]
BIN = os.environ["HAWFINCH_BIN"]
WORK = Path(os.environ["HAWFINCH_WORK"])
QUICK = bool(os.environ.get("HAWFINCH_QUICK"))
HERE = Path(__file__).parent
# Neither the template's penalties nor chance.
GREEDY = {"temperature": 0, "presence_penalty": 0, "frequency_penalty": 0}


def openai_client(url=URL, key="none", **more):
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60, **more)


def anthropic_client(url=URL, key="none"):
    return anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="session")
def client():
    return openai_client()


@pytest.fixture(scope="session")
def claude():
    return anthropic_client()


@contextlib.contextmanager
def server(name, *arguments):
    """Another server of the built-in model; gives its address."""
    log = WORK / f"{name}-{time.monotonic_ns()}.log"
    command = [BIN, "serve", "--port", "0", "--state-dir", str(log.with_suffix("")), *arguments]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    try:
        for _ in range(300):
            found = re.search(r" at (http:\S+)$", log.read_text(), re.M)
            if found:
                break
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield found.group(1)
        assert process.poll() is None, f"the server ended: {log.read_text()}"
    finally:
        process.terminate()
        process.wait(60)


def post(path, body, url=URL, **more):
    return requests.post(url + path, json=body, timeout=60, **more)


def tokens_of(text):
    return post("/tokenize", {"prompt": text}).json()["tokens"]


def tokens_of_chat(messages):
    return post("/tokenize", {"messages": messages}).json()["tokens"]


def busy(url=URL):
    """Requests that run and that wait."""
    model = requests.get(f"{url}/health", timeout=10).json()["models"][0]
    return model["running"], model["waiting"]


def until(true, seconds=10):
    """Waits until it is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass in time"
        time.sleep(0.02)


def hawfinch(*arguments):
    """Runs the program; gives what it prints."""
    done = subprocess.run([BIN, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def said(text):
    return [{"role": "user", "content": text}]


def lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
