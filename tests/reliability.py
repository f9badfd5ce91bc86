"""Does to runs what loses them, and writes the figures: `python tests/reliability.py`.

`--share 0.1` does a tenth of everything; the report says how many of each were done.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(HERE), str(HERE.parent)]

FULL = {
    "kills": 50, "run_events": 1, "race": 50, "cuts": 50, "flips": 200, "lines": 7000,
    "configs": 3000,
}  # fmt: skip


def kills(backend, count, times, *mutation):
    """The figures of `faults.kills`, in a process of its own: it forks, and has one backend."""
    done = subprocess.run(
        [sys.executable, "-m", "helpers.faults.kills", backend, str(count), str(times), *mutation],
        cwd=HERE,
        env=os.environ
        | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"faults.kills {backend} ended with {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout)


def divergences():
    """The messages of runs that diverge: by poisoned weights, and by an absurd rate."""
    import tempfile

    import keras
    import numpy as np
    from helpers import tiny
    from helpers.faults import harness

    from kerasnorm.errors import DivergedError
    from kerasnorm.training import checkpoints, run_folder

    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.is_last = epoch == 2

        def on_train_batch_begin(self, batch, logs=None):
            if self.is_last and batch == 3:
                kernel = self.model.get_layer("convblock2_conv2").kernel
                kernel.assign(kernel * np.nan)

    messages = {}
    hot = {"recipe": "best", "optimizer": "sgd", "learning_rate": 1e30, "schedule": "constant",
           "norm": "none"}  # fmt: skip
    for title, changed, callbacks in (("poisoned", {}, [Poison()]), ("absurd rate", hot, [])):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "run"
            try:
                tiny.train(out=folder, callbacks=callbacks, **harness.options("auto", **changed))
                messages[title] = "no message: it did not diverge"
            except DivergedError as error:
                messages[title] = f"exit {error.exit_code}: {error}"
            if callbacks:
                epoch = checkpoints.load_newest(folder / run_folder.CHECKPOINTS)[1]["epoch"]
                messages[title] += f" (The checkpoint of epoch {epoch} loads.)"
    return messages


def measure(share, runs, backends):
    """Does everything, and returns a line of the report for each fault."""
    from helpers.faults import damage, folders, fuzz, harness, writes

    count = {name: max(1, round(number * share)) for name, number in FULL.items()}
    count["kills"] = runs or count["kills"]
    every = max(1, round(1 / share))
    say("1, 3: kills")
    killed = {backend: kills(backend, count["kills"], 20) for backend in backends}
    say("2, 5: writes")
    saved = writes.each_event_of_a_save()
    runs = writes.each_event_of_a_run(harness.options("auto"), every)
    disks = writes.full_disk(range(40, 840, 20))
    say("4: damage")
    damaged = damage.damaged(count["cuts"], count["flips"])
    say("6: folders")
    race = folders.race(count["race"], 16)
    paths = {name: folders.odd_path(name) for name in folders.ODD_PATHS}
    facts = {
        "a dead owner's lock is free": folders.dead_owner(),
        "exit code where nothing may be written": folders.read_only(),
        "the clock set back at every look changes nothing": folders.clock_set_back(),
    }
    say("7: divergence")
    messages = divergences()
    say("8: fuzzing")
    fuzzed = fuzz.fuzz(count["lines"], count["configs"])
    say("9: mutations")
    found = {name: kills("torch", 6, 0, name)["once"] for name in ("generator", "optimizer")}
    in_place = writes.each_event_of_a_save(writes.saving_in_place)
    return [
        *[
            f"1. **SIGKILL at random times, half at a write, fsync or rename, dropout on "
            f"({backend}).** {f['once']['runs']} runs, {f['once']['killed']} killed before their "
            f"end, {f['once']['while_saving']} of these while writing: **{f['once']['different']} "
            "ended otherwise** than the undisturbed run, in any byte of weights, optimizer, "
            "statistics or history."
            for backend, f in killed.items()
        ],
        (
            f"2. **Each write, fsync and rename fails in turn.** In a save: {saved['events']} "
            f"events, {saved['wrong']} left no valid checkpoint, a half one or litter. In a whole "
            f"run: {runs['tried']} of {runs['events']} events, {runs['wrong']} left a damaged "
            f"checkpoint or went on to another result, {runs['unclear']} without a clear message."
        ),
        *[
            f"3. **Killed again and again while writing ({backend}).** One run, "
            f"{f['often']['interruptions']} times; results that differ: {f['often']['different']}."
            for backend, f in killed.items()
        ],
        "4. **Truncated files and flipped bits** "
        f"({count['cuts']} and {count['flips']}, over all files of a run). "
        + " ".join(
            f"Then {name}: {c['refused']} refused with a message, {c['harmless']} harmless, "
            f"{c['wrong']} wrong results, {c['traceback']} tracebacks."
            for name, c in damaged.items()
        ),
        "5. **Disk full.** "
        + (
            "Not measured: this user may not mount a small disk."
            if disks is None
            else f"{disks['sizes']} sizes of disk: {disks['ended']} large enough, {disks['final']} "
            f"with no room for the final model alone, {disks['clear']} messages with path and "
            f"need, {disks['wrong']} with litter or a damaged checkpoint, {disks['different']} "
            "that ended otherwise than an undisturbed run once there was room."
        ),
        f"6. **Folders.** {race['processes']} processes want one folder, {race['rounds']} times: "
        f"one winner and exit 6 for all others in {race['fair']}. "
        + "; ".join(f"{name}: {value}" for name, value in facts.items())
        + f". Odd paths in the C locale without UTF-8 mode that work: {sum(paths.values())} of "
        f"{len(paths)} ({', '.join(f'`{name}`' for name in paths)}).",
        *[f"7. **Divergence, {title}.** {text}" for title, text in messages.items()],
        (
            f"8. **Made-up command lines and config files.** {fuzzed['lines']:,} "
            f"and {fuzzed['configs']:,}; tracebacks, unknown exit codes or files left: "
            f"{fuzzed['wrong']}."
        ),
        *[
            f"9. **Mutation: {name} left out of what a resumed run gets back.** "
            f"{f['different']} of {f['runs']} killed runs end otherwise: the test of kills fails, "
            "as it must."
            for name, f in found.items()
        ],
        (
            f"9. **Mutation: saving in place.** {in_place['wrong']} of {in_place['events']} "
            "failing events leave something wrong: the test of writes fails, as it must."
        ),
    ]


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main():
    """Measures and writes the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="Share of the full counts.")
    parser.add_argument("--kills", type=int, default=0, help="Killed runs of each backend.")
    parser.add_argument("--out", type=Path, default=HERE.parent / "results" / "reliability.md")
    args = parser.parse_args()
    share, out = args.share, args.out
    from kerasnorm.runtime import installed_backends, versions

    backends = [name for name in ("torch", "tensorflow") if name in installed_backends()]
    lines = measure(share, args.kills, backends)
    command = "python tests/reliability.py" + (f" --share {share:g}" if share != 1 else "")
    command += f" --kills {args.kills}" if args.kills else ""
    found = versions()
    stack = ", ".join(f"{k} {v}" for k, v in found.items() if k != "kerasnorm")
    note = "" if share == 1 else "The full counts: `python tests/reliability.py`.\n"
    text = [
        "# Reliability",
        "",
        (
            f"Written by `{command}` ({stack}, {platform.system()} {platform.machine()}). {note}"
            "Every run is tiny (40 images, 3 epochs of 5 steps), with dropout, augmentation and a "
            "validation split."
        ),
        "",
        *[f"- {line}" for line in lines],
        "",
    ]
    out.write_text("\n".join(text), encoding="utf-8")
    say(f"wrote {out}")


if __name__ == "__main__":
    main()
