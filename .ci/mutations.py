"""Break guarded lines one at a time and see the tests fail: a check of the tests, run by hand.

    python .ci/mutations.py [NAME ...]

Each mutation changes one line of a copy of the tracked files and runs the tests that guard it. Prints a line for each;
exits with 1 if one of them went unnoticed, or if a line to change is not there any more.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
_SECONDS = 900


class Mutation(NamedTuple):
    """In `file`, `line` becomes `broken`, which `tests` (arguments of pytest) must notice."""

    file: str
    line: str
    broken: str
    tests: str


MUTATIONS = {
    "only audio to text is trained": Mutation(
        "modeling_wavlink/losses_wavlink.py",
        "return (audio_to_text + clips_per_text * text_to_audio) / (2 * len(all_audio_embeds))",
        "return (audio_to_text + clips_per_text * audio_to_text) / (2 * len(all_audio_embeds))",
        "tests/model/test_losses.py",
    ),
    "negatives of other processes get no gradient": Mutation(
        "modeling_wavlink/processes_wavlink.py",
        "        dist.all_reduce(grad)\n",
        "",
        "tests/training/test_distributed.py",
    ),
    "padding reaches the second convolution": Mutation(
        "modeling_wavlink/whisper_audio_wavlink.py",
        """        hidden_states = F.gelu(encoder.conv1(hidden_states))
        if mask is not None:""",
        """        hidden_states = F.gelu(encoder.conv1(hidden_states))
        if False:""",
        "tests/model/test_modeling.py tests/model/test_contract.py",
    ),
    "ties count for the model": Mutation(
        "wavlink/evaluation/metrics.py",
        "position = first = 1 + (rows >= right[:, :1]).sum(1)",
        "position = first = 1 + (rows > right[:, :1]).sum(1)",
        "tests/evaluation/test_metrics.py",
    ),
    "an index runs whatever model it names": Mutation(
        "wavlink/search/index_model.py",
        'pinned = {"local_files_only": True}',
        "pinned = {}",
        "tests/hub/test_trust.py -k index",
    ),
    "a push of an index goes over another's commit": Mutation(
        "wavlink/search/hub.py",
        ', "parent_commit": earlier.commit}',
        "}",
        "tests/search/test_index_hub.py -k push",
    ),
    "files are not brought to the disk": Mutation(
        "wavlink/atomic_files.py",
        "            os.fsync(handle)\n",
        "            pass\n",
        "tests/library/test_atomic_files.py",
    ),
    "a scale runs away from its bound": Mutation(
        "wavlink/training/finetuning.py",
        "    model.logit_scale.clamp_(max=math.log(model.config.logit_scale_max))",
        "    pass",
        "tests/model/test_optimization.py",
    ),
    "dropout differs between the passes of a cached gradient": Mutation(
        "wavlink/training/grad_cache.py",
        "    torch.set_rng_state(states[0])\n",
        "",
        "tests/training/test_grad_cache.py",
    ),
    "hidden files are clips": Mutation(
        "processing/sound_files.py",
        'return (name.startswith(".") and name not in (".", "..")) or name.lower() in _OF_SYSTEMS',
        "return False",
        "tests/processing/test_sound_files.py",
    ),
    "a clip in memory has no bound": Mutation(
        "processing/audio.py",
        "        if most < 0:\n",
        "        if False:\n",
        "tests/processing/test_audio.py tests/processing/test_windows.py",
    ),
    "a copy of an index may unpack to any size": Mutation(
        "wavlink/search/parquet.py",
        "    if size > MOST_BYTES:\n",
        "    if False:\n",
        "tests/search/test_index_hub.py",
    ),
    "a damaged index is searched": Mutation(
        "wavlink/search/checksums.py",
        "                if digest != known.get(name, digest):\n",
        "                if False:\n",
        "tests/search/test_table.py tests/search/test_search.py",
    ),
    "a vector index is not asked for enough": Mutation(
        "wavlink/search/vector_index.py",
        "        if min(recall.values()) >= GOAL or probes >= partitions:\n",
        "        if True:\n",
        "tests/search/test_nearest.py",
    ),
}


def copy_of_tracked_files(folder: Path) -> None:
    """Copy the files that git tracks, as they are in the working tree."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in listed.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)


def noticed(mutation: Mutation, folder: Path) -> str:
    """Run the tests on the broken copy; returns "noticed", or what is wrong with the tests."""
    path = folder / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.line) != 1:
        return f"the line stands {text.count(mutation.line)} times in {mutation.file}"
    path.write_text(text.replace(mutation.line, mutation.broken), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutation.tests.split()]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no answer within {_SECONDS} s"
    finally:
        path.write_text(text, encoding="utf-8")
    if done.returncode == 1:  # tests ran and failed; 2 and more are errors of pytest's own
        return "noticed"
    last = (done.stdout.strip() or done.stderr.strip()).splitlines()[-1:]
    return f"NOT NOTICED, pytest's exit status is {done.returncode}: {''.join(last)}"


def main(names: list[str]) -> int:
    """Try the mutations of these names, or all; returns the exit status."""
    unknown = sorted(set(names) - set(MUTATIONS))
    if unknown:
        raise SystemExit(f"no mutation {', '.join(unknown)}: there are {', '.join(MUTATIONS)}")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        copy_of_tracked_files(Path(folder))
        for name in names or MUTATIONS:
            results[name] = noticed(MUTATIONS[name], Path(folder))
            print(f"{name}: {results[name]}", flush=True)
    caught = sum(result == "noticed" for result in results.values())
    print(f"{caught} of {len(results)} noticed")
    return int(caught < len(results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
