# SPDX-License-Identifier: Apache-2.0
"""Every byte that a Trainer, an accelerate and a DCP run write is traced and searched for weights, names and figures.

The runs are processes of their own under strace; each write to a file or a pipe is looked at, deleted temporary files
included. The same search finds the canaries in the same runs with the tools' own savers, so it can fail.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WRITE = re.compile(r"(?:p?write(?:64|v|v2)?)\((\d+)(?:<[^>]*>)?, ?(.*)\) += \d+")
MAPPED = re.compile(r"mmap\(.*PROT_WRITE.*MAP_SHARED(?!\|MAP_ANON)")
NAME = b"canarylayer"
VALUE = b"\xcd\xcc\x8c\x3f" * 4  # four times 1.1 as a 32-bit float: weights that no noise in a ciphertext repeats

COMMON = """
import sys, torch, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from privguard.checkpoint import Key
torch.set_num_threads(1)
folder, sealed = Path(sys.argv[1]), sys.argv[2] == "sealed"
key = Key.generate_symmetric()

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.canarylayer = torch.nn.Linear(16, 16)
        torch.nn.init.constant_(self.canarylayer.weight, 1.1)
        self.canarylayer.weight.requires_grad_(False)  # the weight stays what is searched for
    def forward(self, x, labels=None):
        loss = self.canarylayer(x).square().mean()
        return {"loss": loss}
"""
RUNS = {
    "trainer": """
from transformers import Trainer, TrainingArguments
from privguard.integrations.sealed.state import Sealing
from privguard.integrations.sealed.trainer import SealedTrainer
steps = {"max_steps": 4, "save_steps": 2, "save_total_limit": 1, "run_name": "canarylayer-run"}
args = TrainingArguments(str(folder), report_to=[], use_cpu=True, disable_tqdm=True, **steps)
data = [{"x": torch.ones(16), "labels": 0} for _ in range(8)]
def make():
    if sealed:
        return SealedTrainer(Model(), args, train_dataset=data, sealing=Sealing(to=[key]))
    return Trainer(Model(), args, train_dataset=data)
make().train()
args.max_steps = 6
again = make()
again.train(resume_from_checkpoint=True)
again.save_model(str(folder / "final"))
""",
    "accelerate": """
from accelerate import Accelerator
from privguard.integrations.sealed.accelerate import load_state, save_state
from privguard.integrations.sealed.state import Sealing
accelerator = Accelerator(cpu=True)
model = Model()
model, optimizer = accelerator.prepare(model, torch.optim.AdamW([model.canarylayer.bias]))
accelerator.backward(model(torch.ones(2, 16))["loss"]); optimizer.step()
if sealed:
    save_state(accelerator, folder / "state", Sealing(to=[key]))
    load_state(accelerator, folder / "state", Sealing(to=[key]))
else:
    accelerator.save_state(str(folder / "state"))
""",
    "dcp": """
import torch.distributed.checkpoint as dcp
from privguard.integrations.sealed.dcp import SealedReader, SealedWriter
state = {"model": Model().state_dict(), "note": "canarylayer"}
if sealed:
    dcp.save(state, storage_writer=SealedWriter(folder / "dcp", to=key))
    dcp.load(state, storage_reader=SealedReader(folder / "dcp", key=key))
else:
    dcp.save(state, checkpoint_id=folder / "dcp")
""",
}


def leaks(folder: Path, run: str, how: str) -> set[str]:
    """Which canaries the run wrote anywhere but to its own stdout and stderr, and whether it mapped a file to write."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not here")
    (folder / "run.py").write_text(COMMON + RUNS[run])
    log = folder / "trace"
    calls = "write,pwrite64,writev,pwritev,pwritev2,sendfile,copy_file_range,mmap"
    command = [
        "strace",
        "-f",
        "-y",
        "-xx",
        "-s",
        "5000000",
        "-e",
        f"trace={calls}",
        "-e",
        "signal=none",
        "-o",
        str(log),
    ]
    command += [sys.executable, str(folder / "run.py"), str(folder / "out"), how]
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if "ptrace" in done.stderr.lower():
        pytest.skip("tracing is not allowed here")
    assert done.returncode == 0, done.stderr[-2000:]
    return found(log)


def found(log: Path) -> set[str]:
    canaries = {"name": NAME, "value": VALUE, "figure": b"learning_rate"}
    seen, written = set[str](), 0
    with log.open() as lines:
        for line in lines:
            if MAPPED.search(line):
                seen.add("mapping")
            call = WRITE.search(line)
            if call is None or call[1] in ("1", "2"):
                continue
            content = bytes.fromhex("".join(re.findall(r"\\x([0-9a-f]{2})", call[2])))
            written += len(content)
            seen |= {name for name, canary in canaries.items() if canary in content}
    assert written > 5_000
    return seen


@pytest.mark.parametrize("run", RUNS)
def test_nothing_in_clear_is_ever_written(tmp_path, run):
    assert leaks(tmp_path, run, "sealed") == set()


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_the_search_finds_what_the_tools_themselves_write(tmp_path, run):
    assert {"name", "value"} <= leaks(tmp_path, run, "plain")
