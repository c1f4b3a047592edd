"""A world without torch for tests of the runner: images are a function of prompt, seed and checkpoint.

The folder named by the environment variable TOY steers it; every process finds it as the model's folder:
    trace  every stage appends a line to it
    delay  seconds each block takes
    full   when it is there, generating fails as on a full disk
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from harness.datasets.contract import Prompt
from harness.errors import CellError, UserError, unknown
from harness.reports.record import Metric
from harness.world import Measurement, MethodFacts, ModelFacts, Quantized

SIDE = 8
SETSIZE = 1000


def trace(setting, *words):
    with (setting.model.path / "trace").open("a") as file:
        file.write(" ".join(map(str, words)) + "\n")


def noise(*parts) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(sha256(repr(parts).encode()).digest()[:8], "big"))


@dataclass
class ToySet:
    name: str
    takes_path: bool = False
    size: int = SETSIZE
    summary: str = "a toy"

    def count(self, path=None):
        return self.size

    def source(self, path):
        return path

    def prompts(self, n, path=None):
        if n > self.size:
            raise UserError(f"{self.name} has {self.size} prompts, not {n}")
        return [Prompt(f"p{i}", f"{self.name} {i}") for i in range(n)]

    def calibration(self, n, path=None):
        return [Prompt(f"c{i}", f"calibration {i}") for i in range(n)]


def fail(name):
    if name == "raises":
        raise ValueError("the method is wrong\nand says so at length")
    if name == "exits":
        raise SystemExit(3)
    if name == "nans":
        raise CellError("nan", "the quantized weights of layer are not finite")
    if name == "hungry":
        raise MemoryError("cannot allocate")
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if name == "slow":
        time.sleep(60)


class ToySession:
    def __init__(self, setting):
        self.setting = setting
        self.weights = b"float"

    def calibrate(self, prompts, path):
        trace(self.setting, "calibrate", self.setting.model.name)
        if self.setting.model.name == "toy-broken":
            raise RuntimeError("no statistics")
        path.write_bytes(repr([p.id for p in prompts]).encode())

    def quantize(self, method, bits, calibration, workspace):
        trace(self.setting, "quantize", self.setting.model.name, method.name, *bits)
        print("quantizing with", method.name, flush=True)
        fail(method.name)
        statistics = b"" if calibration is None else calibration.read_bytes()
        self.weights = sha256(repr((method.name, method.config, bits, statistics)).encode()).digest()
        return 0.25

    def save(self, folder):
        (folder / "model.safetensors").write_bytes(self.weights)
        return Quantized(4.5, 100, len(self.weights))

    def load(self, folder):
        trace(self.setting, "load", self.setting.model.name)
        self.weights = (folder / "model.safetensors").read_bytes()

    def generate(self, prompts):
        name, digest = self.setting.model.name, sha256(self.weights).hexdigest()[:8]
        trace(self.setting, "generate", name, digest, prompts[0].id, len(prompts))
        delay = self.setting.model.path / "delay"
        time.sleep(float(delay.read_text()) if delay.exists() else 0)
        if (self.setting.model.path / "full").exists():
            raise OSError(28, "No space left on device")
        seed = self.setting.protocol["seed"]
        made = [noise(p.id, p.text, seed, self.weights).integers(0, 256, (SIDE, SIDE, 3)) for p in prompts]
        return np.stack(made).astype(np.uint8)

    def roads(self):
        return {} if self.weights == b"float" else {"to_q": "int8", "to_k": "int8", "norm.linear": "gemv"}

    def measure(self, prompts):
        trace(self.setting, "measure", self.setting.model.name)
        now = time.perf_counter()
        return Measurement(now, now, now, now, 1000, {"clock": now})


PRELOAD = ("numpy", "PIL.PngImagePlugin", "safetensors.numpy", "harness.cell")


class ToyWorld:
    preload = PRELOAD
    methods = ("fine", "weighty", "statistics", "narrow")
    failing = ("raises", "exits", "nans", "hungry", "killed", "crashes", "slow")

    def start_worker(self):
        pass

    def model_names(self):
        return ["toy-a", "toy-b", "toy-broken"]

    def default_model_names(self):
        return ["toy-a", "toy-b"]

    def method_names(self):
        return list(self.methods)

    def missing_models(self, names, paths):
        return {}

    def model(self, name, protocol, paths):
        sampling = {"steps": protocol["steps"] or 2}
        return ModelFacts(name, Path(os.environ["TOY"]), f"digest of {name}", sampling, 0.01, 200, 64, 70)

    def method(self, name, overrides):
        known = [*self.methods, *self.failing]
        if name not in known:
            raise unknown("method", name, known)
        if set(overrides) - {"group"}:
            raise unknown(f"setting of {name}", min(overrides), ["group"])
        group = int(overrides.get("group", 64))
        return MethodFacts(
            name=name,
            version=1,
            config={"group": group},
            variant="default" if group == 64 else f"group={group}",
            overrides=dict(overrides),
            weight_only=name == "weighty",
            weight_bits=(4,) if name == "narrow" else (2, 3, 4),
            act_bits=(4, 8),
            needs_calibration=name == "statistics",
            reconstruction=False,
            fingerprint="source",
        )

    def variants(self, name, label):
        if (name, label) != ("fine", "sizes"):
            raise unknown(f"set of {name}", label, ["sizes"])
        return ({"group": "32"}, {}, {"group": "64"})

    def dataset(self, name):
        sets = {
            "scenes": ToySet("scenes"),
            "files": ToySet("files", takes_path=True),
            "few": ToySet("few", size=20),
        }
        if name not in sets:
            raise unknown("dataset", name, sets)
        return sets[name]

    def check_data_path(self, name, path):
        raise unknown("--data-path name", name, ["lpips-alex"])

    def fingerprint(self, device):
        return {"generating": "source"}

    def judging(self):
        return os.environ.get("TOY_JUDGE", "judge")

    def device(self, asked):
        if asked == "cuda":
            raise UserError("--device cuda: there is none")
        return "cpu"

    def open(self, setting):
        return ToySession(setting)

    def features(self, setting, images):
        return images.reshape(len(images), -1)[:, :4].astype(np.float32)

    def reduce(self, setting, prompts, images, reference):
        trace(setting, "reduce", setting.model.name, len(prompts))
        images, reference = (
            None if part is None else (np.concatenate(list(part[0].runs(7))), part[1])
            for part in (images, reference)
        )
        assert len(images[0]) == len(images[1]) == len(prompts)
        values = [float(image.mean()) for image in images[0]]
        metrics = {"brightness": Metric(sum(values) / len(values))}
        if reference is not None:
            gap = np.abs(images[0].astype(float) - reference[0]).mean()
            metrics["gap"] = Metric(float(gap))
        return metrics, {"brightness": values}


WORLD = ToyWorld()
