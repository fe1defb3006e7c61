"""One run of a study, in a process of its own: `python -m threefold.studies.study_worker STUDY RUN`."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from threefold.cohorts.cohort import read_cohort
from threefold.cohorts.failures import listed
from threefold.errors import RunError, ThreefoldError
from threefold.experiment import ClassificationSpec, Experiment
from threefold.experiments import load_experiment
from threefold.interruption import terminating_as_interrupt
from threefold.studies.study_folder import GIB, Outcome, OutcomeState, StudyFolder
from threefold.studies.study_spec import RunPlan, StudySpec, plan_runs
from threefold.threads import sharing_environment

INTERRUPTED = 130
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_INTERRUPTING = (*(128 + number for number in _SIGNALS), *(-number for number in _SIGNALS))
_KILLED = -9  # by SIGKILL, which Windows has not
_WITH_GAPS = 4
_STATES: dict[int, OutcomeState] = {
    0: "finished",
    _WITH_GAPS: "finished",
    **dict.fromkeys(_INTERRUPTING, "interrupted"),
}
"""What an exit status means; any other: failed."""
_STDIN = 0
_GLANCE = 0.1  # seconds


def run_in_process(
    folder: Path,
    run: str,
    threads: int,
    *,
    gpu: str | None = None,
    home: Path | None = None,
    started: Callable[[subprocess.Popen[bytes]], None] | None = None,
) -> Outcome:
    """Train and evaluate a run of a study in a new process, and wait for its end.

    A run that is killed for its memory takes nothing else with it, and a run whose starter is killed stops:
    both ends hold a pipe. What it says goes into its log.

    Args:
        folder: the study's.
        run: its id.
        threads: of the CPU.
        gpu: name of the only one that it sees; None: as this process.
        home: the working folder, from which code of one's own is imported; None, and where it is not there:
            this process's.
        started: told of the process.
    """
    study = StudyFolder(folder)
    log = study.log(run)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **sharing_environment(os.environ, threads)}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    begin = time.monotonic()
    with log.open("ab") as stream:  # what an attempt before said stays
        said_before = stream.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder), run],
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE,
            env=environment,
            cwd=home if home is not None and home.is_dir() else None,
        )
        assert process.stdin is not None
        if started is not None:
            started(process)
        try:
            code, memory = _ended(process)
        except BaseException:  # this process was told to stop: so is the run, which writes its state
            process.terminate()
            process.wait()
            raise
        finally:
            process.stdin.close()
    return Outcome(
        run=run,
        state=_STATES.get(code, "failed"),
        message="" if code == 0 else _why(log, said_before, code),
        seconds=time.monotonic() - begin,
        memory=memory,
    )


def _ended(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Wait for the end of a process; return its exit code and its largest resident memory, GiB.

    By glances, since Ray cancels a task between two instructions of Python and not inside a system call.
    """
    peak = 0.0
    while True:
        code, largest = _polled(process)
        if code is not None:
            return code, peak or largest
        peak = max(peak, _peak_memory(process.pid))
        time.sleep(_GLANCE)


def _polled(process: subprocess.Popen[bytes]) -> tuple[int | None, float]:
    """Return the exit code of a process that has ended, and its largest memory, GiB, where it is told."""
    if not hasattr(os, "wait4"):  # Windows
        return process.poll(), 0.0
    found, status, usage = os.wait4(process.pid, os.WNOHANG)
    if not found:
        return None, 0.0
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GIB


def _peak_memory(process: int) -> float:
    """Return the largest resident memory of a process so far, GiB; 0 where the system does not tell.

    What `wait4` reports counts the starter's memory as well, of which a new process is a copy at first.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    kilobytes = next((line.split()[1] for line in lines if line.startswith("VmHWM")), "0")
    return int(kilobytes) * 1024 / GIB


def experiment_of(study: StudyFolder, plan: RunPlan) -> Experiment:
    """Return what a run trains.

    Raises:
        ExperimentError: naming the variant and the key.
    """
    overrides = list(plan.overrides)
    if plan.start is not None:
        weights = study.run(plan.start).path.resolve()
        overrides += ["pretrain=null", f"initial_weights.path={weights}"]
    try:
        return load_experiment(plan.recipe, overrides)
    except ThreefoldError as error:
        changed = " (with the overrides of the study and of the variant)" if plan.overrides else ""
        raise type(error)(f"variant {plan.variant}{changed}: {error}") from error


def execute(folder: Path, run: str) -> str:
    """Train, evaluate and look into a run of a study; what is there already is not done again.

    Returns:
        What of it is not whole, though it was trained and evaluated; else nothing.

    Raises:
        RunError: the study has no such run.
        ThreefoldError: as `train` and `evaluate_run` do.
    """
    import torch

    from threefold.runs.evaluate import evaluate_run
    from threefold.runs.explain import explain_run
    from threefold.training.progress import Lines
    from threefold.training.run import train

    study = StudyFolder(folder)
    spec = study.read()
    plan = next((plan for plan in plan_runs(spec) if plan.id == run), None)
    if plan is None:
        raise RunError(f"{folder}: the study has no run '{run}'. `threefold study status` lists them.")
    torch.set_num_threads(spec.threads)
    cohort = read_cohort(study.cohort(plan.cohort, spec.cohorts[plan.cohort]), allow_outside=True)
    path = study.run(run).path
    path.parent.mkdir(parents=True, exist_ok=True)
    progress = Lines()
    trained = train(experiment_of(study, plan), cohort, path, resume=True, progress=progress)
    gaps = []
    left_out = evaluate_run(trained).predictions.left_out
    if left_out:
        gaps.append(f"predictions without {len(left_out)} cases: {'; '.join(listed(left_out))}")
    if lacks_evidence(study, spec, plan):
        try:
            found = explain_run(trained, cohort, progress=partial(progress.step, "explaining"))
        except Exception as error:  # whatever it is: the run itself is whole, and claims on it stand
            if not isinstance(error, ThreefoldError):
                traceback.print_exc()
            gaps.append(f"no evidence: {error}")
        else:
            if found.left_out:
                gaps.append(
                    f"evidence without {len(found.left_out)} cases: {'; '.join(listed(found.left_out))}"
                )
    return "; ".join(gaps)


def lacks_evidence(study: StudyFolder, spec: StudySpec, plan: RunPlan) -> bool:
    """Whether the study looks into its runs, and this one, which classifies, is still to be looked into."""
    return (
        spec.evidence
        and bool(experiment_of(study, plan).tasks_of(ClassificationSpec))
        and not study.run(plan.id).evidence.is_file()
    )


def main(arguments: list[str]) -> int:
    """Execute one run; return the exit code."""
    try:
        with terminating_as_interrupt():
            gaps = execute(Path(arguments[0]), arguments[1])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except ThreefoldError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if gaps:
        print(f"error: {gaps}", file=sys.stderr)
        return _WITH_GAPS
    return 0


def _end_with_the_starter() -> None:
    """Interrupt this process when the one that started it is gone: its end of the pipe on stdin closes."""

    def watch() -> None:
        while os.read(_STDIN, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    if stat.S_ISFIFO(os.fstat(_STDIN).st_mode):
        threading.Thread(target=watch, daemon=True).start()


def _why(log: Path, begin: int, code: int) -> str:
    """Return what a process died of: its error, else its last line, of what it said from byte `begin` on."""
    if code == _KILLED:
        return "killed from outside (signal 9): most likely the memory was used up"
    if code in _INTERRUPTING:
        return "stopped by a signal"
    lines = log.read_bytes()[begin:].decode("utf-8", errors="replace").rstrip().splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    if starts:
        return "\n".join(lines[starts[-1] :]).removeprefix("error: ")
    return f"exit status {code}: {lines[-1] if lines else 'it said nothing'}"


if __name__ == "__main__":
    _end_with_the_starter()
    sys.exit(main(sys.argv[1:]))
