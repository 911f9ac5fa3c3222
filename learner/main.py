"""`python -m learner.main`: the command line of the whole job.

Contract: composes and checks the config (Hydra), says what is missing before anything starts, makes the run directory,
and hands over to `learner.job`. A user's mistake, or reward servers that can't be had, end with their message and
status 2, without a traceback (`debug=true` shows it); a run that stopped itself (docs/diagnostics.md) with its reason
and status 3; one of whose processes died or hung (docs/faults.md) with its name and status 4: it can be resumed;
SIGTERM and SIGINT with what could be saved and status 143 and 130, within a minute.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from actors.errors import FAILURES, last_failure
from configs.load import GROUPS, register, resolve
from configs.schema import Config
from learner import plan
from learner.checkpoints import config_hash
from learner.stopping import Interrupted
from reward_server.cluster import connected, reach, send_token
from reward_server.errors import RewardError, RewardSetupError
from rrg.errors import ProcessError, RunStoppedError, UserError

# libgomp's spinning threads would take the cores from the other processes; it reads this when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

register()


@hydra.main(version_base="1.3", config_path="pkg://configs", config_name="config")
def main(raw: DictConfig) -> None:
    try:
        run(of_run(raw.resume, HydraConfig.get().overrides.task) if raw.resume else resolve(raw))
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        sys.exit(interrupted.status)
    except (UserError, RewardSetupError, RewardError, ProcessError) as error:
        if raw.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3 if isinstance(error, RunStoppedError) else 4 if isinstance(error, ProcessError) else 2)


def of_run(run_dir: str, overrides: Sequence[str]) -> Config:
    """The config with which the run in `run_dir` began, set to go on. `overrides` may change what leaves its numbers as
    they are (`learner.checkpoints.config_hash`): where and on how many processes it runs, how far, how it is watched.

    Raises:
        UserError: there is no run, or `overrides` would make it another one.
    """
    path = Path(run_dir) / "config.yaml"
    if not path.is_file():
        raise UserError(f"resume: {path} does not exist; resume=DIR must be the directory of an earlier run")
    earlier = OmegaConf.load(path)
    assert isinstance(earlier, DictConfig)
    given = [text for text in overrides if text.lstrip("+").split("=")[0] not in ("resume", "dry_run", "debug")]
    refusal = UserError(
        f"resume: a run goes on with its own config ({path}), but for fields that leave its numbers as they are "
        f"(learner.rl.steps, learner.num_ranks, rollout.num_actors, ...); leave out {', '.join(given)}"
    )
    if any(text.lstrip("+~").split("=")[0] in (*GROUPS, "exp") for text in given):
        raise refusal
    merged = OmegaConf.merge(earlier, OmegaConf.from_dotlist([text.lstrip("+") for text in overrides]))
    assert isinstance(merged, DictConfig)
    config = resolve(merged)
    if given and _identity(config) != _identity(resolve(earlier), config.stage):
        raise refusal
    return config


def _identity(cfg: Config, asked: str | None = None) -> tuple[object, ...]:
    """What a resumed run must have in common with the earlier one. A run that was to end with the warm start may go on
    into RL, if that is `asked`."""
    stage = "all" if cfg.stage == "warm_start" and asked == "all" else cfg.stage
    # Optimizer states of one ZeRO stage are no use to another.
    return config_hash(cfg), stage, cfg.start, cfg.name, cfg.output_dir, cfg.learner.zero_stage


def run(cfg: Config) -> None:
    """Prints the plan (`dry_run`) or runs the job in its run directory.

    Raises:
        UserError: something that the config names is missing, or the disk cannot be written.
        ProcessError: a process of the run died or hung.
        Interrupted: a signal ended it.
    """
    resolved = OmegaConf.to_yaml(OmegaConf.structured(cfg))
    if cfg.dry_run:
        print(resolved)
        print(plan.describe(cfg))
        for line in _lacking(cfg):
            print(line)
        return
    plan.require(cfg)
    run_dir = Path(cfg.resume or cfg.output_dir)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(resolved)
    except OSError as error:
        raise UserError(
            f"output_dir: cannot write {run_dir}: {error.strerror}; choose another with output_dir=DIR"
        ) from error
    if cfg.cluster.address is not None:
        reach(cfg.cluster.address)
        send_token()
    else:
        # A Ray of this machine alone listens on loopback, as it does where Ray knows no clusters.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    # Ray, gRPC and the models are imported only now, so that --help and errors answer at once.
    from learner.job import run_job

    try:
        run_job(cfg, run_dir)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"the disk is full: {error}; make room, then go on with resume={run_dir}") from error
    except Interrupted as error:
        onward = f"go on with: python -m learner.main resume={shlex.quote(str(run_dir))}"
        raise Interrupted(error.signum, f"{error.what_stays}; {onward}") from None
    except ProcessError as error:
        (run_dir / "failed.txt").write_text(traceback.format_exc())
        raise ProcessError(
            f"{error}{_of_actors(run_dir)} (all of it: {run_dir}/failed.txt); resume={run_dir} goes on"
        ) from error


def _of_actors(run_dir: Path) -> str:
    told = last_failure(run_dir)
    return "" if told is None else f"; the last rollout actor that failed said: {told} ({run_dir}/{FAILURES})"


def _lacking(cfg: Config) -> Iterator[str]:
    """What `dry_run` says of this machine and of the cluster: where the processes would go, and what is missing."""
    try:
        plan.require(cfg)
        if cfg.cluster.address is not None:
            from learner import placement

            with connected(cfg.cluster.address):
                yield from placement.check(cfg, None)
    except (UserError, RewardSetupError) as error:
        yield f"here it {error}"


if __name__ == "__main__":
    main()
