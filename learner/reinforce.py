"""The phase of reinforcement learning: step, record, judge, save, validate; until its last step or a reason to stop.

Contract: after any step the run can be saved and gone on with; a signal is heeded there (`learner.stopping`). A run
that stops itself (`learner.monitor`) has its last step saved, if that is sound, and the reason in `stopped.json`, until
it is gone on with and comes to its end. What stopped a run stops it again when it is resumed with the same settings.
Reward servers that are away are waited for `reward.timeout_s`; a run that stops without them leaves out the step that
lacks scores, and does it again when it is resumed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rich.markup import escape

from learner import monitor
from learner.checkpoints import Best, latest_checkpoint, read_state
from learner.files import write_whole
from learner.monitor import Stop
from learner.offsets import reward_offsets
from learner.run import Run
from learner.tracking import Row
from learner.validation import Validation, validation_studies
from reward_server.errors import RewardChangedError, RewardError
from reward_server.spec import reward_from_components
from rrg.errors import RunStoppedError

# What the live line of an RL step shows, ...
SHOWN = {
    "reward_mean": "reward",
    "kl_k3": "KL",
    "entropy": "entropy",
    "length_mean": "tokens",
    "seconds_rollout": "rollout s",
    "seconds_reward_wait": "reward s",
    "seconds_update": "update s",
    "seconds_sync": "sync s",
}
# ... where rollout, reward and update overlap, ...
SHOWN_ASYNC = {
    "staleness_mean": "staleness",
    "idle_rollout": "idle: rollout",
    "idle_reward": "reward",
    "idle_learner": "learner",
}
# ... and that of a validation.
SHOWN_VALIDATION = {
    name: name for name in ("reward", "abnormal_reward", "finding_f1", "shuffle_gap", "unique", "bleu4")
}
# What a run directory holds of the policy after the last step.
OF_LAST_STEP = ("samples_rl.jsonl", "evidence_rl.jsonl", "per_study_rl.csv", "summary.json")


def reinforce(run: Run) -> None:
    """Policy-gradient steps up to `learner.rl.steps`.

    Raises:
        RunStoppedError: going on would be of no use.
    """
    if run.cfg.reward.relative_to_constant:
        run.algo.reward_offsets = reward_offsets(run.cfg, run.folder, run.studies, run.client.score, run.show.advance)
    try:
        with run.signals.finishing_steps():
            _steps(run, _validation(run))
    except RunStoppedError as stopped:
        checkpoint = latest_checkpoint(run.checkpoints)
        about = {"step": run.algo.rl_step, "reason": str(stopped), "checkpoint": checkpoint and str(checkpoint)}
        write_whole(run.folder / "stopped.json", json.dumps(about, indent=2) + "\n")
        raise
    (run.folder / "stopped.json").unlink(missing_ok=True)


def _steps(run: Run, validation: Validation | None) -> None:
    rl, algo = run.cfg.learner.rl, run.algo
    leave_if_asked = partial(run.signals.leave_if_asked, partial(_saved, run))
    _check_reward(run)
    _validate_if_due(run, validation)  # the warm start
    _heed(run, monitor.judge_record(run.tracker.rows("rl"), _validations(run), rl.stop))
    if algo.rl_step < rl.steps:
        forget_evaluation(run.folder)
        (run.folder / "stopped.json").unlink(missing_ok=True)
    else:
        run.show.line(f"RL steps: all {rl.steps} were done before")
    serving = algo.rollout_actors
    while algo.rl_step < rl.steps:
        algo.train()
        run.tracker.log("rl", algo.rl_step, algo.step_metrics)
        _tell(run, algo.step_metrics)
        if serving != (serving := algo.rollout_actors):
            run.show.line(f"rollout actors: {serving}")
        _heed(run, monitor.judge_steps(run.tracker.rows("rl"), rl.stop))
        leave_if_asked()
        _check_reward(run)
        if algo.rl_step % rl.checkpoint_every == 0 or algo.rl_step == rl.steps:
            _saved(run)
        _validate_if_due(run, validation)
        leave_if_asked()


def forget_evaluation(folder: Path) -> None:
    """Removes what was written of a policy that was evaluated at its last step, and now gets more of them."""
    for name in OF_LAST_STEP:
        (folder / name).unlink(missing_ok=True)


def _tell(run: Run, metrics: Mapping[str, float]) -> None:
    shown = SHOWN | (SHOWN_ASYNC if run.cfg.rollout.max_staleness else {})
    step, steps = run.algo.rl_step, run.cfg.learner.rl.steps
    run.show.step("RL steps", step, steps, _line(shown, metrics))


def _line(shown: Mapping[str, str], metrics: Mapping[str, float]) -> str:
    # A step of which every sample failed has no reward, KL or entropy to show.
    return "  ".join(f"{name} {metrics[key]:.3g}" for key, name in shown.items() if key in metrics)


def _validation(run: Run) -> Validation | None:
    studies = validation_studies(run.cfg, run.studies)
    if not studies:
        return None
    return Validation(
        studies,
        run.folder / "samples",
        lambda ids: [trajectory.text for trajectory in run.algo.generate(ids)],
        run.client.score,
        partial(reward_from_components, cfg=run.cfg.reward),
        run.cfg,
    )


def _validate_if_due(run: Run, validation: Validation | None) -> None:
    """Validates the step, unless that stands in the record; keeps its checkpoint where it is the best so far."""
    rl, step = run.cfg.learner.rl, run.algo.rl_step
    if validation is None or step % rl.evaluate_every or any(row["step"] == step for row in _validations(run)):
        return
    try:
        row = validation.measure(step)
    except RewardError as error:  # as in a step: the run goes on without
        run.show.line(f"  no validation after {step} RL steps: {escape(str(error))}")
        return
    # Before the record: a run that is killed between the two validates again, and would not know of the best otherwise.
    if rl.keep_best is not None and monitor.is_best([*_validations(run), {"step": step, **row}], rl.keep_best):
        run.algo.save_run(run.checkpoints, Best(rl.keep_best, row[rl.keep_best], step))
    run.tracker.log("validation", step, row)
    if run.cfg.tracking.reports:
        run.tracker.reports("validation", step, validation.file(step))
    run.show.line(f"  validation after {step} RL steps  {_line(SHOWN_VALIDATION, row)}")
    _heed(run, monitor.judge_validations(_validations(run), rl.stop))


def _validations(run: Run) -> Sequence[Row]:
    return run.tracker.rows("validation")


def _check_reward(run: Run) -> None:
    """Stops a run whose reward servers are away, or compute something else than at its beginning, before a resume or
    after."""
    try:
        now = monitor.fingerprint(run.client.describe())
    except RewardChangedError as error:
        _heed(run, Stop(str(error)))
    except RewardError as error:
        steps = run.tracker.rows("rl")
        _heed(run, Stop(f"the reward servers are away: {error}", sound=not (steps and steps[-1].get("failed"))))
    else:
        known = run.folder / "reward.json"
        if not known.exists():
            write_whole(known, json.dumps(now, indent=2) + "\n")
        _heed(run, monitor.judge_reward(json.loads(known.read_text(encoding="utf-8")), now))


def _saved(run: Run) -> Path:
    """The checkpoint of the present step, which is written unless it is there."""
    newest = latest_checkpoint(run.checkpoints)
    if newest is not None and (state := read_state(newest)).phase == "rl" and state.step == run.algo.rl_step:
        return newest
    return run.algo.save_run(run.checkpoints)


def _heed(run: Run, stop: Stop | None) -> None:
    if stop is None:
        return
    if stop.sound:
        _saved(run)
    raise RunStoppedError(f"stopped after {run.algo.rl_step} RL steps: {stop.reason}")
