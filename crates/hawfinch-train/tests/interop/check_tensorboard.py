"""What TensorBoard's reader finds in the event files of the test `a_run_that_was_resumed_is_two_files`.

    check_tensorboard.py FOLDER

The folder holds two files: a run of four steps, and the same run resumed after step 2, with a third step and an
evaluation. Checked are the bytes of every event (as protobuf itself would write them), the values, and that the steps
of the first file that the second one replaces are gone.
"""

import glob
import math
import sys

from tensorboard.backend.event_processing import event_accumulator, event_file_loader
from tensorboard.compat.proto.event_pb2 import Event

folder = sys.argv[1]
files = sorted(glob.glob(folder + "/events.out.tfevents.*"))
assert len(files) == 2, files
events = [list(event_file_loader.RawEventFileLoader(name).Load()) for name in files]
assert [len(e) for e in events] == [5, 4], events
for raw in sum(events, []):
    assert Event.FromString(raw).SerializeToString() == raw, raw
assert all(Event.FromString(e[0]).file_version == "brain.Event:2" for e in events)

run = event_accumulator.EventAccumulator(folder, purge_orphaned_data=True)
run.Reload()
tags = ["loss", "lr", "weight_decay", "grad_norm", "tokens_per_second", "tokens"]
assert sorted(run.Tags()["scalars"]) == sorted(
    ["train/" + t for t in tags] + ["eval/loss", "eval/bits_per_byte", "eval/dead_channels"]
), run.Tags()


def values(tag):
    return [(s.step, s.value) for s in run.Scalars(tag)]


loss = values("train/loss")
assert [step for step, _ in loss] == [1, 2, 3], loss
assert loss[0][1] == 11 and math.isnan(loss[1][1]) and loss[2][1] == 9, loss
assert values("train/tokens") == [(1, 512), (2, 1024), (3, 1536)]
assert values("eval/loss") == [(3, 9.5)] and values("eval/bits_per_byte") == [(3, 3.25)]
assert values("eval/dead_channels") == [(3, 0.25)]
assert abs(values("train/lr")[0][1] - 6e-4) < 1e-10
print("all equal")
