"""What checks know of their surroundings, and how their results are kept."""

import ctypes
import json
import os
import signal
import subprocess
import time
from pathlib import Path


class Failed(Exception):
    """What was checked is not so; figures that show it may come along."""

    def __init__(self, why, **figures):
        super().__init__(why)
        self.figures = figures


class Skipped(Exception):
    """It cannot be checked here."""


class Setting:
    """The program, the device, and how large everything is."""

    def __init__(self, args, here):
        self.jrs, self.device, self.here = args.jrs.resolve(), args.device, here
        self.tests, self.python = args.tests.resolve(), args.python
        self.work = args.state.resolve() / "work"
        self.gpu = args.device.startswith("cuda")
        # Where the kernels of GPUs run on a processor, only the logic is tried.
        self.tiny = not self.gpu
        self.minutes = args.minutes
        self.about = {"device": args.device, "commit": self.commit(), **self.hardware()}

    def commit(self):
        manifest = self.jrs.parent / "MANIFEST"
        if manifest.is_file():
            return manifest.read_text().splitlines()[0].removeprefix("commit ")
        git = subprocess.run(["git", "-C", self.here, "rev-parse", "HEAD"], capture_output=True, text=True)
        return git.stdout.strip() or "unknown"

    def hardware(self):
        if not self.gpu:
            return {"name": "no GPU", "driver": "none"}
        index = self.device.partition(":")[2] or "0"
        try:
            said = subprocess.run(
                ["nvidia-smi", "-i", index, "--query-gpu=name,driver_version", "--format=csv,noheader"],
                capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return {"name": "unknown: nvidia-smi does not run", "driver": "unknown"}
        name, _, driver = said.stdout.strip().partition(", ")
        return {"name": name or "unknown", "driver": driver or "unknown"}

    def folder(self, name):
        folder = self.work / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def run(self, *command, limit, env=None, log=None, codes=(0,)):
        """Runs a command to its end; its output. A command that fails or is late is a failure with its last words."""
        return finish(self.start(*command, env=env), limit, codes, log)

    def start(self, *command, env=None):
        # A group of its own, so that a limit ends its children as well; and it ends with this program, however that ends.
        return subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                env={**os.environ, **(env or {})}, start_new_session=True, preexec_fn=end_with_parent)

    def jrs_json(self, *command, limit):
        """The JSON line that a jrs command ends with."""
        said = self.run(self.jrs, *command, "--json", limit=limit)
        lines = [line for line in said.splitlines() if line.startswith("{")]
        if not lines:
            raise Failed(f"jrs {command[0]} printed no JSON: {said[-500:]}")
        return json.loads(lines[-1])


PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


def end_with_parent():
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def finish(process, limit, codes=(0,), log=None):
    try:
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        kill(process)
        said, _ = process.communicate()
        raise Failed(f"{Path(process.args[0]).name} did not end within {limit:.0f} s: {said[-1500:]}") from None
    if log:
        log.write_text(said)
    if process.returncode not in codes:
        raise Failed(f"{' '.join(process.args)[:200]} ended with {process.returncode}: {said[-1500:]}")
    return said


def kill(process):
    """kill -9 of a process and its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


class State:
    """The folder of results: one JSON file for each check, whole or not there."""

    def __init__(self, folder, setting):
        self.folder, self.setting, self.started = folder, setting, time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self.new = set()

    def path(self, name):
        return self.folder / f"{name}.json"

    def result(self, name):
        """The result of this build on this device, if there is one."""
        try:
            result = json.loads(self.path(name).read_text())
        except (OSError, ValueError):
            return None
        same = all(result.get(key) == value for key, value in self.setting.about.items())
        return result if same else None

    def run(self, name, check, again, budget):
        before = self.result(name)
        if before and before["status"] == "passed" and not again:
            print(f"{name}: passed before", flush=True)
            return
        if budget is not None and time.monotonic() - self.started > budget:
            print(f"{name}: not begun, the time is used up", flush=True)
            return
        print(f"{name}: begins", flush=True)
        clock = time.monotonic()
        try:
            status, why, figures = "passed", "", check(self.setting)
        except Skipped as reason:
            status, why, figures = "skipped", str(reason), {}
        except Failed as reason:
            status, why, figures = "failed", str(reason), reason.figures
        except Exception as error:  # a check that is broken must not keep the others from running
            status, why, figures = "failed", f"{type(error).__name__}: {error}", {}
        result = {"check": name, "status": status, "why": why, "seconds": round(time.monotonic() - clock, 1),
                  "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "figures": figures, **self.setting.about}
        replace(self.path(name), json.dumps(result, indent=1) + "\n")
        self.new.add(name)
        self.summarise()
        print(f"{name}: {status} in {result['seconds']:.0f} s{': ' if why else ''}{why}", flush=True)

    def results(self):
        found = (self.result(path.stem) for path in sorted(self.folder.glob("*.json")) if path.stem != "summary")
        return [result for result in found if result]

    def table(self):
        about = self.setting.about
        lines = [f"{about['name']}, driver {about['driver']}, device `{about['device']}`, commit `{about['commit'][:12]}`.", "",
                 "| check | result | seconds | figures |", "|---|---|---|---|"]
        for result in self.results():
            figures = "; ".join(f"{name.replace('_', ' ')} {shown(value)}" for name, value in result["figures"].items())
            why = result["why"].splitlines()[0][:200].replace("|", "/") if result["why"] else ""
            lines.append(f"| {result['check']} | {result['status']}{': ' if why else ''}{why} | {result['seconds']:.0f} | {figures} |")
        return "\n".join(lines) + "\n"

    def summarise(self):
        results = self.results()
        replace(self.folder / "summary.json", json.dumps({**self.setting.about, "results": results}, indent=1) + "\n")
        replace(self.folder / "summary.md", self.table())

    def write(self, path):
        """The table between two marks of a page; what else is there stays."""
        text = path.read_text() if path.is_file() else "# Results on GPUs\n\n<!-- gpu-check -->\n<!-- end -->\n"
        head, _, rest = text.partition("<!-- gpu-check -->")
        _, _, tail = rest.partition("<!-- end -->")
        replace(path, f"{head}<!-- gpu-check -->\n{self.table()}<!-- end -->{tail}")

    def exit_code(self, names):
        """0: all passed; 1: one failed; 3: something was skipped or is missing."""
        states = [(self.result(name) or {}).get("status") for name in names]
        return 1 if "failed" in states else 0 if all(state == "passed" for state in states) else 3


def replace(path, text):
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


def shown(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)
