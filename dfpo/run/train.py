"""The training loop, one line a stage."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from accelerate.tracking import GeneralTracker

from dfpo.config import Config, ConfigError, to_yaml
from dfpo.config.rules import is_learned_at_once
from dfpo.config.types import Samples
from dfpo.method.critics import estimate_values
from dfpo.method.targets import compute_targets
from dfpo.method.update import update
from dfpo.rollout.batches import parts_of
from dfpo.rollout.collect import collect
from dfpo.rollout.engines import EngineError
from dfpo.rollout.functions import RolloutError
from dfpo.rollout.policy import shipped_policy
from dfpo.rollout.processes import Processes, ProcessLost
from dfpo.run import checkpoint, watch
from dfpo.run.bars import bar, speaks
from dfpo.run.diagnostics import count_rewards, engine_metrics, rollout_metrics, warn_of_drift
from dfpo.run.examples import Example, find_examples, predict
from dfpo.run.given import Given
from dfpo.run.hub import push
from dfpo.run.kept import forget_after, keep
from dfpo.run.live import live_plot
from dfpo.run.lock import AtWork, hold
from dfpo.run.manifest import fingerprint
from dfpo.run.progress import RECORDED_STEPS, Progress, ValueRecord
from dfpo.run.records import MetricsLog, create_run, replace_text, write_json
from dfpo.run.report.page import NAME, write_report
from dfpo.run.run_card import write_card
from dfpo.run.setup import NOTHING, Setup, check_prompts, set_up
from dfpo.run.stop import RunError, Stopped, StopRequest, how_to_resume
from dfpo.run.summary import describe_end, describe_start, headline, run_summary, slow_checkpoint
from dfpo.run.trackers import start_trackers, track_images

# Steps from whose rollouts the calibration plot is made: late, but not a single one.
CALIBRATION_SHARE = 0.25


def train(config: Config, resume: Path | None = None, given: Given = NOTHING) -> Path:
    """Runs the configuration to its end and returns the run's directory.

    ``resume`` is the directory of a run whose settings ``config`` holds; it goes on from its last
    checkpoint. ``given`` holds what Python handed over in place of paths. Raises ConfigError
    before anything is written, then RunError where the run cannot go on and Stopped where it is
    told to stop.
    """
    with StopRequest().listen() as stop:
        setup = set_up(config, resume, given)
        stop.run = setup.run
        try:
            if resume is None:
                _from_lead(lambda: create_run(setup.run, setup.config, setup.given.store))
            with alone(setup.run):
                return _train(setup, stop, resuming=resume is not None)
        except OSError as error:
            raise RunError(f"cannot write: {error}; {how_to_resume(setup.run)}") from error
        except (EngineError, ProcessLost, RolloutError) as error:
            raise RunError(f"{error}; {how_to_resume(setup.run)}") from error


def _train(setup: Setup, stop: StopRequest, resuming: bool) -> Path:
    progress = begin(setup, resuming)
    leads = Processes.here().leads
    if leads:
        forget_after(setup.run, progress.step)
    log = MetricsLog(setup.run / "metrics.jsonl", progress.step, writes=leads)
    trackers = start_trackers(setup.config, setup.run) if leads else []
    if speaks(setup.config):
        print(describe_start(setup, progress))
    if progress.before is None:
        progress.before = watch.evaluate_apart(setup, setup.first)
        if setup.config.eval.every:
            watch.judge(setup, progress, progress.before)
    examples = examples_of(setup, progress)
    if progress.step == 0:
        progress.fans = predict(setup.critic, setup.space, examples, setup.config)
    run_steps(setup, stop, progress, examples, log, trackers)
    finish(setup, progress, log, trackers)

    return setup.run


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """No other process trains this run inside; raises ConfigError where one does."""
    with ExitStack() as stack:

        def enter() -> None:
            try:
                stack.enter_context(hold(run))
            except AtWork as who:
                raise ConfigError(f"resume: {run} is at work, in {who}") from None

        _from_lead(enter)
        yield


def begin(setup: Setup, resuming: bool) -> Progress:
    """What the run's last checkpoint holds, or a new run's directory and first checkpoint."""
    _from_lead(lambda: check_first_policy(setup, resuming))
    progress = checkpoint.restore(setup) if resuming else None
    if resuming:
        _from_lead(lambda: replace_text(setup.run / "config.yaml", to_yaml(setup.config)))
    if progress is None:
        progress = Progress()
        checkpoint.save(setup, progress)
    return progress


def check_first_policy(setup: Setup, resuming: bool) -> None:
    """The reference of KL is read anew by a resumed run, so it must be what it was: it may be
    another run's policy, which went on. Raises ConfigError."""
    config = setup.config
    model = Path(config.model or shipped_policy(config.task))
    kept, now = setup.run / "first_policy.sha256", fingerprint(model)
    if not resuming:
        replace_text(kept, now + "\n")
    elif kept.exists() and kept.read_text(encoding="utf-8").strip() != now:
        raise ConfigError(
            f"resume: {model} is not the model that this run began from, it has changed since; "
            "bring it back, or start a new run"
        )


def examples_of(setup: Setup, progress: Progress) -> list[Example]:
    """Answers of the first policy along which the critic's values are drawn; none where there is
    no critic or its picture is taken already."""
    config = setup.config
    if setup.critic_optimizer is None or progress.step >= max(config.critic.warmup_steps, 1):
        return []
    with checkpoint.own_draws(setup.generator, config.eval.seed):
        return find_examples(setup.first, setup.source.held_out, setup.reward, config)


def run_steps(
    setup: Setup,
    stop: StopRequest,
    progress: Progress,
    examples: list[Example],
    log: MetricsLog,
    trackers: list[GeneralTracker],
) -> None:
    """All steps that are left, with their checkpoints. Raises Stopped and RunError."""
    config, run = setup.config, setup.run
    progress_bar = bar(
        range(progress.step, config.steps), desc="train", unit="step",
        initial=progress.step, total=config.steps, disable=not speaks(config),
    )  # fmt: skip
    live = live_plot(config) if Processes.here().leads else None

    for step in progress_bar:
        if watch.has_stopped_gaining(progress, config):
            progress_bar.close()
            break
        with stop.step():
            record = train_step(setup, progress, examples, step)
            if watch.evaluates_now(progress, config):
                record |= watch.look(setup, progress)
            written = log.append(record)
            for tracker in trackers:
                tracker.log(written, step=step)
            if live is not None:
                live.draw(log, last=progress.step == config.steps)
            progress_bar.set_postfix(headline(record, progress, config))
            drift = None if progress.has_drifted else warn_of_drift(written, config)
            if drift:
                progress.has_drifted = True
                if Processes.here().leads:
                    progress_bar.write(drift, file=sys.stderr)
            exhausted = progress.steps_unscored >= config.max_unscored_steps
            stop.agree()
            ends = progress.step == config.steps or watch.has_stopped_gaining(progress, config)
            due = progress.step % config.checkpoint_every == 0 or ends
            if due or exhausted or stop.signum is not None:
                started = time.perf_counter()
                checkpoint.save(setup, progress)
                hint = slow_checkpoint(time.perf_counter() - started, record, config)
                first = due and progress.step == config.checkpoint_every
                if hint and first and speaks(config):
                    progress_bar.write(hint)
        if stop.signum is not None:
            raise Stopped(stop.signum, run)
        if exhausted:
            raise RunError(
                f"not one valid reward in {progress.steps_unscored} steps in a row, the last one's "
                f"first problem: {progress.problem or 'every answer is unscored'}; stopped after "
                f"step {step} with a checkpoint; {how_to_resume(run)}"
            )


def finish(
    setup: Setup, progress: Progress, log: MetricsLog, trackers: list[GeneralTracker]
) -> None:
    """Evaluates, and writes models, plots and summary."""
    config, run = setup.config, setup.run
    after = progress.latest
    if progress.evaluated != progress.step:
        after = watch.evaluate_apart(setup, setup.sampler)
    models = checkpoint.gather_models(setup)
    if not Processes.here().leads:
        return
    checkpoint.write_models(run, setup, models)
    metrics = log.read()

    if config.plots:
        from dfpo.run.plots import plot_run  # matplotlib, which only drawing needs

        plot_run(
            run / "plots", config,
            metric=setup.source.metric, metrics=metrics, before=progress.before, after=after,
            records=progress.records, fans=progress.fans, best_step=progress.best_step,
        )  # fmt: skip
        track_images(trackers, run / "plots", config.steps)

    for tracker in trackers:
        tracker.finish()

    progress.tick()
    summary = run_summary(setup, progress, after, metrics)
    scores = {"before": progress.before, "after": after}
    write_card(run, config, summary, scores)
    write_json(run / "summary.json", summary)
    if config.plots:
        try:
            write_report([run], run / NAME)
        except ConfigError as error:
            # Of a file that somebody changed; the run itself is done.
            print(f"{run / NAME} is not written: {error}", file=sys.stderr)
    if not config.quiet:
        print("\n".join(describe_end(setup, progress, scores, metrics)))
    if config.push_to_hub:
        place = push(run, config.push_to_hub)
        if not config.quiet:
            print(f"policy and card in {place}")


def train_step(
    setup: Setup, progress: Progress, examples: list[Example], step: int
) -> dict[str, float]:
    """One step, rollout to update; returns its metrics."""
    config, clock = setup.config, Clock()
    train_policy = step >= config.critic.warmup_steps
    rows = setup.source.training(step, config.rollout.prompts)
    if setup.source.rows is None:
        check_prompts(rows, setup.policy, setup.tokenizer, config)

    with clock("rollout"):
        rollout = collect(
            setup.sampler, setup.first, rows,
            reward=setup.reward, noise=setup.noise, config=config, step=step,
            update_looks=train_policy and is_learned_at_once(config),
        )  # fmt: skip

    tokens = int(rollout.samples.mask.sum())
    metrics = {"step": step, "tokens": tokens, **count_rewards(rollout.scored, config)}
    estimate = returns = targets = None
    if len(rollout.answers):
        with clock("targets"):
            estimate = estimate_values(
                setup.critic, rollout.samples, setup.generator, config.micro_tokens
            )
            setup.space.tell(rollout)
            targets = compute_targets(setup.space.mapped(rollout), estimate, config, step)
        with clock("update"):
            losses, rollout = update(
                setup.learner, rollout, targets, config, step, train_policy=train_policy
            )
            setup.sampler.engine.update()
        if estimate is not None:
            returns = setup.space.readout(estimate, rollout.answers.rows)
        metrics |= rollout_metrics(rollout, estimate, returns, targets, setup.source.metric)
        metrics |= losses | engine_metrics(rollout, config)
        if returns is not None and step >= int(config.steps * (1 - CALIBRATION_SHARE)):
            progress.records.append(ValueRecord.from_rollout(rollout, returns))
            # Every checkpoint has them: of a long run the last alone.
            del progress.records[:-RECORDED_STEPS]
    if Processes.here().leads:
        keep(
            setup.run, setup.tokenizer, rollout,
            estimate=returns, targets=targets, config=config, step=step,
        )  # fmt: skip

    if examples and step + 1 == config.critic.warmup_steps:
        # The last moment at which the examples are the policy's own.
        progress.fans = predict(setup.critic, setup.space, examples, config)
    progress.count(rollout.scored, tokens)
    return {**metrics, **clock.report(tokens), **count_processes(rollout.samples, config)}


def count_processes(samples: Samples, config: Config) -> dict[str, float]:
    """How many processes there are, and how many answers each computes, where there are several."""
    processes = Processes.here()
    if processes.count == 1:
        return {}
    rows = list(range(len(samples.lengths)))
    counts = torch.zeros(processes.count)
    counts[processes.rank] = sum(map(len, parts_of(samples, rows, config.micro_tokens)))
    shown = {f"perf/rows/{i}": n for i, n in enumerate(processes.sum(counts).tolist())}
    return {"perf/processes": processes.count, **shown}


class Clock:
    """Wall seconds of the stages of one step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - started

    def report(self, tokens: int) -> dict[str, float]:
        total = sum(self.seconds.values())
        stages = {f"perf/{stage}_seconds": value for stage, value in self.seconds.items()}
        return {**stages, "perf/seconds": total, "perf/tokens_per_second": tokens / total}


def _from_lead(make: Callable[[], None]) -> None:
    Processes.here().from_lead(make)
