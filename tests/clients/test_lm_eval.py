"""lm-eval as it is, through the completions and chat APIs; its likelihoods against `hawfinch logits` and `/v1/rank`."""

import itertools
import json
import math
import subprocess
import sys

import pytest
from conftest import HERE, MODEL, QUICK, URL, WORK, lines, post, said, tokens_of
from test_own_routes import logits_of

pytestmark = pytest.mark.skipif(QUICK, reason="--quick leaves lm-eval out")
EVAL = HERE.parents[2] / "shared/data/eval"
LIMIT = 8


def first(path, count=LIMIT):
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in itertools.islice(file, count)]


def docs_of(task):
    if task == "arc":
        return first(EVAL / "arc/ARC-Easy-test.jsonl")
    if task == "lambada":
        return first(EVAL / "lambada/lambada_test.jsonl")
    if task == "piqa":
        labels = (EVAL / "piqa/valid-labels.lst").read_text().split()
        return [{**doc, "label": int(label)} for doc, label in zip(first(EVAL / "piqa/valid.jsonl"), labels)]
    return lines(HERE / "lm-eval/own.jsonl")


def evaluate(model, path, tasks, *more):
    """Runs lm-eval; gives, of each task, its results and its samples in order."""
    folder = WORK / f"lm-eval-{model}"
    (folder / "data").mkdir(parents=True)
    for task in tasks:
        text = "".join(json.dumps(d) + "\n" for d in docs_of(task))
        (folder / f"data/{task}.jsonl").write_text(text, encoding="utf-8")
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", model, "--tasks", ",".join(f"hawfinch_{t}" for t in tasks),
        "--include_path", HERE / "lm-eval", "--model_args", f"model={MODEL},base_url={URL}{path},max_retries=1", *more,
        "--limit", LIMIT, "--log_samples", "--output_path", folder / "out",
    ]
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    (file,) = folder.rglob("results_*.json")
    results = json.loads(file.read_text())["results"]
    found = {}
    for task in tasks:
        (file,) = folder.rglob(f"samples_hawfinch_{task}_*.jsonl")
        samples = sorted(lines(file), key=lambda s: s["doc_id"])
        assert len(samples) == LIMIT
        found[task] = results[f"hawfinch_{task}"], samples
    return found, done.stderr + done.stdout


@pytest.fixture(scope="module")
def completions():
    tasks = ["own", "rolling", "generation", *(["arc", "piqa", "lambada"] if EVAL.is_dir() else [])]
    found, log = evaluate("local-completions", "/v1/completions", tasks, "--batch_size", 3)
    assert "Using remote tokenizer" in log, "it found by itself that the server tokenises"
    return found


def pairs(samples):
    """Each context and continuation with the likelihood and greediness that lm-eval got."""
    for s in samples:
        for request, answer in zip(s["arguments"].values(), s["filtered_resps"]):
            yield *request.values(), float(answer[0]), str(answer[1]) == "True"


@pytest.mark.parametrize("task", ["own", "arc", "piqa", "lambada"])
def test_likelihoods(completions, task):
    if task not in completions:
        pytest.skip("../shared/data/eval is absent")
    results, samples = completions[task]
    checked = list(pairs(samples))
    assert len(checked) >= LIMIT
    for context, continuation, likelihood, greedy in checked[:6]:
        both, ids = tokens_of(context + continuation), tokens_of(context)
        rows = logits_of(both)
        own = [rows[i - 1][both[i]] for i in range(len(ids), len(both))]
        assert likelihood == pytest.approx(sum(own), abs=1e-3)
        assert greedy == all(rows[i - 1].argmax() == both[i] for i in range(len(ids), len(both)))
        if both == ids + tokens_of(continuation):
            ranked = post("/v1/rank", {"model": MODEL, "prompt": context, "choices": [continuation]}).json()
            assert ranked["results"][0]["logprob"] == pytest.approx(likelihood, abs=1e-3)
    if task == "lambada":
        mean = sum(likelihood for _, _, likelihood, _ in checked) / len(checked)
        assert results["perplexity,none"] == pytest.approx(math.exp(-mean), rel=1e-4)
    else:
        best = [max(range(len(s["filtered_resps"])), key=lambda i: float(s["filtered_resps"][i][0])) for s in samples]
        right = [b == int(s["target"]) for b, s in zip(best, samples)]
        assert results["acc,none"] == pytest.approx(sum(right) / len(right))


def test_rolling(completions):
    results, samples = completions["rolling"]
    bits = total = 0
    for s in samples:
        text = s["doc"]["context"] + " " + s["doc"]["choices"][s["doc"]["label"]] + "."
        # The end of another text stands before.
        ids = [0, *tokens_of(text)]
        rows = logits_of(ids)
        bits -= sum(rows[i - 1][ids[i]] for i in range(1, len(ids))) / math.log(2)
        total += len(text.encode())
    assert results["bits_per_byte,none"] == pytest.approx(bits / total, abs=1e-3)


def test_generation(completions, client):
    """The same texts as the openai client gets."""
    for s in completions["generation"][1]:
        own = client.completions.create(
            model=MODEL, prompt=s["doc"]["context"], temperature=0, max_tokens=24, stop=[".", "\n"])
        assert s["resps"][0][0].strip() == own.choices[0].text.strip()


def test_generation_by_chat(client):
    found, _ = evaluate(
        "local-chat-completions", "/v1/chat/completions", ["generation"], "--apply_chat_template", "--batch_size", 1)
    for s in found["generation"][1]:
        own = client.chat.completions.create(
            model=MODEL, messages=said(s["doc"]["context"]), temperature=0, max_tokens=24, stop=[".", "\n"])
        assert s["resps"][0][0].strip() == own.choices[0].message.content.strip()
